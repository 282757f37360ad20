"""From choices to what exactly goes, and what the result costs. No torch."""

"""A study as a whole: run, found, watched, rehearsed and cleaned up."""

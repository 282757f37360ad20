"""Who is trained on, and who stops early."""

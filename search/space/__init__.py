"""What can be chosen: candidates, the space they lie in, what they cost."""

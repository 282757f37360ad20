"""A study's memory on disk: one JSON object a line, checked when it is read."""

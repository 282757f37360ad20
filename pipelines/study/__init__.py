"""A study as a whole: run, found again, watched, rehearsed and cleaned up after."""

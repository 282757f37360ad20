"""Candidates, the space that they lie in, and their costs."""

"""Criteria that ask how much of the next layer's output is lost."""

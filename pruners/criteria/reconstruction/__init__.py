"""Criteria that ask what the next layer's output loses."""

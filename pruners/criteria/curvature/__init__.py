"""Criteria that look at second derivatives of the loss."""

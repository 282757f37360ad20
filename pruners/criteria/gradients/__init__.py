"""Criteria that look at first derivatives of the loss, or at the loss itself."""

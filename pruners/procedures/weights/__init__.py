"""Procedures that mask single weights while training."""

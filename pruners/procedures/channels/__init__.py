"""Procedures that cut channels before or while training."""

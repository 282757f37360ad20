"""Criteria that look at weights and norm parameters alone: no data needed."""

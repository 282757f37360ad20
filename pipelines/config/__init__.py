"""The study file: its sections, their bounds, and what they import."""

"""Outcomes of candidates: measurements, constraints, dominance, fronts."""

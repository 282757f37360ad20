"""What came of candidates: measurements, constraints, dominance, fronts."""

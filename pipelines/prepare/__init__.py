"""Steps that are taken once per study, before the first candidate: data, dense network, scores, search space."""

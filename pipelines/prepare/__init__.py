"""What is done once per study, before the first candidate: data, dense network, graph, scores, search space."""

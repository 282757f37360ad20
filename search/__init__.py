"""Search spaces, candidates, fronts and searchers. They need numpy, scipy and moocore, but no torch, Ray or MLflow."""

"""Search spaces, candidates, fronts and searchers. Knows numpy, scipy and moocore: no torch, Ray, MLflow or boto3."""

"""Search spaces, candidates, fronts and searchers. Knows numpy and moocore only: no torch, Ray, MLflow or boto3."""

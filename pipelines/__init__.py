"""Studies: the only place that knows Ray, MLflow, S3, data sets and the command line."""

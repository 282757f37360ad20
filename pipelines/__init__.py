"""Studies: the only place that knows Ray, MLflow, S3, data sets and the command line."""

import os

# ONNX Runtime 1.32 otherwise reports to its maker, and leaves a device id in the user's home, once it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

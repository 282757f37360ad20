"""Where a study is recorded: MLflow or memory."""

"""Record of a study in MLflow or in memory. The search never waits for it, nor ends because of it."""

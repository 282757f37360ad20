"""Models of accuracy and latency, and the candidates that they suggest."""

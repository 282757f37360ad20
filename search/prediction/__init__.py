"""Models of quality and latency, and the candidates that they suggest."""

"""Models of accuracy and latency, and what they suggest to try next."""

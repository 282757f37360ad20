"""Published networks: what is written, read back, verified and converted."""

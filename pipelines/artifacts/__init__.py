"""Published networks: written, read, verified and converted."""

"""Choice of the candidates that are trained, and of those that stop early."""

"""Carrying a plan out: surgery, repair, compact layers, batch-norm statistics."""

"""Cutting a network by its plan: surgery, repair, compact layers, batch-norm statistics."""

"""Faults that strike whole studies; `benchmarks/faults.py` makes a table of them."""

from tests.faults import nodes, processes

FAULTS = processes.FAULTS | nodes.FAULTS
"""Name -> fault."""

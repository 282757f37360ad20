"""Faults that strike whole studies; `benchmarks/faults.py` makes a table of them."""

from tests.faults import nodes, processes, services

FAULTS = processes.FAULTS | nodes.FAULTS | services.FAULTS
"""Name -> fault."""

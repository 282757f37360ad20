"""All faults; `benchmarks/faults.py` prints a table of them, `test_faults.py` has each strike once."""

from tests.faults import machine, nodes, processes, services, stores

FAULTS = processes.FAULTS | machine.FAULTS | nodes.FAULTS | services.FAULTS | stores.FAULTS
"""Name -> fault."""

"""Rules of how operators carry channel labels: a small function per kind of ATen operator (docs/add-an-operator.md).

A rule takes the ledger and the call and returns the labels of the result. Data movement is done to the labels in the
same way. Element-wise operations unite labels that meet. Convolutions and matrix products record which weight rows
produce and which columns consume. The tracer refuses an operator without a rule; it never guesses.
"""

import pkgutil
from importlib import import_module

from prunefront.pruners.trace.rules.call import OWN, RULES, Call, Rule, Value, channel_rule, is_tensor, rule

for _neighbour in pkgutil.iter_modules(__path__):  # a new file of rules is found by itself
    import_module(f"{__name__}.{_neighbour.name}")

__all__ = ["OWN", "RULES", "Call", "Rule", "Value", "channel_rule", "is_tensor", "rule"]

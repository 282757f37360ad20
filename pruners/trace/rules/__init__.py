"""How each operator carries channel labels: one small function per kind of ATen operator (docs/add-an-operator.md).

A rule takes the ledger and the call and returns the labels of the result. Data movement is done to the labels as it
is; element-wise operations unite what meets; convolutions and matrix products record which weight rows produce and
which columns consume. What has no rule is refused by the tracer, never guessed.
"""

import pkgutil
from importlib import import_module

from prunefront.pruners.trace.rules.call import RULES, Call, Rule, Value, is_tensor, rule

for _neighbour in pkgutil.iter_modules(__path__):  # a new file of rules is found by being there
    import_module(f"{__name__}.{_neighbour.name}")

__all__ = ["RULES", "Call", "Rule", "Value", "is_tensor", "rule"]

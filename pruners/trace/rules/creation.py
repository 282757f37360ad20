"""Rules of operators that make tensors: one number everywhere takes whatever width it meets."""

from prunefront.pruners.trace.labels import Labels, Ledger, blank
from prunefront.pruners.trace.rules.call import Call, Value, rule


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor")
def constant(ledger: Ledger, call: Call) -> Value:
    """Returns a tensor without labels that is the same everywhere; whether its size follows, the trial shows."""
    made = blank(call.shape)
    return Labels(made.data, made.shape, uniform=True)

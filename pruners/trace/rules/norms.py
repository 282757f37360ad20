"""Rules of norms and other operators with one parameter per channel."""

from prunefront.errors import UnsupportedOp
from prunefront.pruners.graph.channel_graph import Role
from prunefront.pruners.trace.labels import IntArray, Labels, Ledger, Stored
from prunefront.pruners.trace.rules.call import Call, Value, is_tensor, rule


def join_axis(ledger: Ledger, value: Value, labels: IntArray, role: Role) -> None:
    """Joins a per-channel tensor to the labels; None, or one scalar for all channels, needs nothing."""
    if value is None or value.shape == (1,) != labels.shape:
        return
    if isinstance(value, Labels):
        ledger.freeze(labels, "meets a tensor that is not in the state dict")
        return
    nodes = value.axis_nodes(0)
    if nodes is None:
        raise UnsupportedOp(f"{value.name} is reshaped before it is used per channel")
    ledger.join(nodes, labels, "belongs to channels of fixed width")
    ledger.claim(nodes, role)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def batch_norm(ledger: Ledger, call: Call) -> Value:
    """Scale, shift and running statistics go with their channel (axis 1).

    A stored weight that is normalised by its own statistics stays a weight (weight standardisation).
    """
    if isinstance(call["input"], Stored):
        return _standardised(ledger, call)
    x = ledger.require_axes(ledger.as_data(call["input"]), (1,), "is normalised along another axis")
    for name in ("weight", "bias", "running_mean", "running_var"):
        join_axis(ledger, call.get(name), x.vector(1), "norm")
    return x


def _standardised(ledger: Ledger, call: Call) -> Value:
    weight: Stored = call["input"]
    if call.get("running_mean") is not None or not call.get("training", call.get("use_input_stats", True)):
        raise UnsupportedOp(f"{weight.name} is normalised with stored statistics")
    for at in weight.at:
        if set(at.varying()) - {1}:
            ledger.inexact.append(at.data.reshape(-1))
    rows = next((at.vector(1) for at in weight.at if at.varying() == (1,)), None)
    for name in ("weight", "bias"):
        if rows is not None:
            join_axis(ledger, call.get(name), rows, "norm")
    return weight


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(ledger: Ledger, call: Call) -> Value:
    """Returns v · g / ‖v‖, a weight whose gain g goes with the rows of v; zeros add nothing to the norm."""
    made = ledger.meet(call["v"], call["g"])
    return [made, made] if call.op == "_weight_norm_interface" else made


@rule("group_norm")
def group_norm(ledger: Ledger, call: Call) -> Value:
    """Every norm group keeps the same channels, so the number of norm groups stays; the statistics change."""
    x = ledger.require_axes(ledger.as_data(call["input"]), (1,), "is normalised along another axis")
    parts = int(call["num_groups"])
    if parts != x.shape[1]:
        x = ledger.tie_parts(x, 1, parts)
        ledger.inexact.append(x.data.reshape(-1))
    for name in ("weight", "bias"):
        join_axis(ledger, call.get(name), x.vector(1), "norm")
    return x


@rule("layer_norm", "rms_norm")
def layer_norm(ledger: Ledger, call: Call) -> Value:
    """Scale and shift go with their channel; where the norm runs over channels, the statistics change."""
    x = ledger.as_data(call["input"])
    rank, over = len(x.shape), len(call["normalized_shape"])
    inside = set(range(rank - over, rank)) & set(x.varying())
    if not inside:
        for name in ("weight", "bias"):
            if isinstance(call.get(name), Stored):
                ledger.as_data(call[name])
        return x
    if over > 1:
        x = ledger.require_axes(x, inside, "is normalised over")
    ledger.inexact.append(x.data.reshape(-1))
    result: Labels | Stored = x
    for name in ("weight", "bias"):
        if is_tensor(call.get(name)):
            result = ledger.meet(result, call[name])
            if isinstance(call[name], Stored):
                for at in call[name].at:
                    ledger.claim(at.data.reshape(-1), "norm")
    return result


@rule("prelu")
def prelu(ledger: Ledger, call: Call) -> Value:
    """One slope goes with each channel, or one with all."""
    x = ledger.as_data(call.first)
    weight = call["weight"]
    if weight.shape != (1,):
        x = ledger.require_axes(x, (1,), "has a slope per entry of another axis")
        join_axis(ledger, weight, x.vector(1), "other")
    return x

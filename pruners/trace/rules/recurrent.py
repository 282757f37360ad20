"""Rules of recurrent layers: a hidden unit goes with its row in every gate and its column in the recurrent weight."""

from math import prod

import numpy as np

from prunefront.errors import UnsupportedOp
from prunefront.pruners.trace.labels import IntArray, Labels, Ledger, Stored, along
from prunefront.pruners.trace.rules.call import Call, Value, is_tensor, rule
from prunefront.pruners.trace.rules.products import record_macs, weight_nodes

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _layer(
    ledger: Ledger, read: IntArray, weights: list[Value], positions: int, hidden: IntArray | None
) -> IntArray:
    """Joins one direction of one layer and returns the nodes of its hidden units.

    read: labels of its inputs. weights: input weight [gates · hidden, inputs], recurrent weight, then biases. hidden:
    units that this layer's go with.
    """
    if not all(isinstance(w, Stored) for w in weights):
        raise UnsupportedOp("a weight that is not a stored tensor")
    inner, recurrent, *biases = weights
    units = recurrent.shape[1]
    rows = weight_nodes(inner, 0).reshape(-1, units)
    ledger.claim(rows.reshape(-1), "out", producer=True)
    ledger.unite(rows[:1], rows)
    for weight in (recurrent, *biases):
        again = weight_nodes(weight, 0).reshape(-1, units)
        ledger.unite(rows[:1], again)
        ledger.claim(again.reshape(-1), "out", producer=weight is recurrent)
    columns = weight_nodes(recurrent, 1)
    ledger.unite(rows[0], columns)
    ledger.claim(columns, "in")
    reading = weight_nodes(inner, 1)
    ledger.join(reading, read, "reads channels of fixed width")
    ledger.claim(reading, "in")
    if hidden is not None:
        ledger.unite(hidden, rows[0])
    for weight in (inner, recurrent):
        record_macs(ledger, weight, positions)
    return np.asarray(rows[0])


def _meet_state(ledger: Ledger, state: Value, units: IntArray) -> None:
    """Lets a state [..., hidden] that a layer starts from meet its units."""
    if is_tensor(state):
        ledger.meet(along(units, len(state.shape) - 1, state.shape), state)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(ledger: Ledger, call: Call) -> Value:
    """Unites the hidden units of all layers and directions, which have one width."""
    if (
        "params" not in call.given
        or not isinstance(call["params"], list | tuple)
        or "batch_sizes" in call.given
    ):
        raise UnsupportedOp("packed sequences")
    x, params = ledger.as_data(call["input"]), list(call["params"])
    last = len(x.shape) - 1
    x = ledger.require_axes(x, (last,), f"{call.op} runs over its channels")
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    directions = 2 if call["bidirectional"] else 1
    each = 4 if call["has_biases"] else 2
    if len(params) != each * directions * int(call["num_layers"]):
        raise UnsupportedOp("projected hidden units")
    read, hidden = np.asarray(x.vector(last)), None
    for at in range(0, len(params), each * directions):
        made = []
        for start in range(at, at + each * directions, each):
            units = _layer(ledger, read, params[start : start + each], prod(x.shape[:-1]), hidden)
            hidden = units if hidden is None else hidden
            made.append(units)
        read = np.concatenate(made)
    assert hidden is not None
    for state in states:
        _meet_state(ledger, state, hidden)
    shape = (*x.shape[:-1], len(read))
    final = [along(hidden, len(s.shape) - 1, s.shape) for s in states]
    return [along(read, last, shape), *final]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(ledger: Ledger, call: Call) -> Value:
    """Does one step of one layer."""
    x = ledger.as_data(call["input"])
    last = len(x.shape) - 1
    x = ledger.require_axes(x, (last,), f"{call.op} runs over its channels")
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    weights = [call[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh") if call.get(n) is not None]
    units = _layer(ledger, np.asarray(x.vector(last)), weights, prod(x.shape[:-1]), None)
    for state in states:
        _meet_state(ledger, state, units)
    made: list[Labels] = [along(units, len(s.shape) - 1, s.shape) for s in states]
    return made if call.op == "lstm_cell" else made[0]

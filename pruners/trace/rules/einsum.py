"""Rule of einsum: letters that are summed unite what they meet, the others keep their labels."""

from math import prod

import numpy as np

from prunefront.errors import UnsupportedOp
from prunefront.pruners.trace.labels import IntArray, Labels, Ledger, Stored, along, blank
from prunefront.pruners.trace.rules.call import Call, Value, rule
from prunefront.pruners.trace.rules.products import record_macs, weight_nodes


@rule("einsum")
def einsum(ledger: Ledger, call: Call) -> Value:
    """Does the products of two tensors; a stored one is a weight: it reads summed letters and makes its own."""
    operands = list(call["tensors"])
    given, output = _letters(str(call["equation"]), operands, len(call.shape))
    if len(operands) != 2:
        raise UnsupportedOp(f"einsum of {len(operands)} tensors")
    if any(len(set(letters)) < len(letters) for letters in given):
        raise UnsupportedOp("einsum of a diagonal")
    if isinstance(operands[0], Stored) and isinstance(operands[1], Labels):
        operands, given = operands[::-1], given[::-1]
    if isinstance(operands[0], Labels) and isinstance(operands[1], Stored):
        return _weighted(ledger, operands[0], operands[1], given, output, call)
    x, y = (ledger.as_data(operand) for operand in operands)
    return _product(ledger, x, y, given, output, call)


def _letters(equation: str, operands: list[Value], rank: int) -> tuple[list[str], str]:
    """Returns the letters of each operand and of the result, an ellipsis spelt out in capitals that are not used."""
    left, _, output = equation.replace(" ", "").partition("->")
    given = left.split(",")
    if "->" not in equation:
        every = "".join(given).replace(".", "")
        output = ("..." if "..." in left else "") + "".join(
            sorted(c for c in set(every) if every.count(c) == 1)
        )
    spare = [chr(c) for c in range(0x0391, 0x03C9) if chr(c) not in equation]
    hidden = max(
        (
            len(o.shape) - len(g.replace("...", ""))
            for o, g in zip(operands, given, strict=True)
            if "..." in g
        ),
        default=0,
    )

    def spelt(letters: str, size: int) -> str:
        if "..." not in letters:
            return letters
        count = size - len(letters.replace("...", ""))
        return letters.replace("...", "".join(spare[hidden - count : hidden]))

    return [spelt(g, len(o.shape)) for o, g in zip(operands, given, strict=True)], spelt(output, rank)


def _weighted(ledger: Ledger, x: Labels, weight: Stored, given: list[str], output: str, call: Call) -> Labels:
    """Does the product with a stored tensor: summed letters read, letters of its own produce."""
    mine, its = given
    summed = [c for c in its if c in mine and c not in output]
    made = [c for c in its if c not in mine and c in output]
    shared = [c for c in its if c in mine and c in output]
    if len(summed) + len(made) + len(shared) < len(its):
        raise UnsupportedOp("einsum sums a weight over an axis of its own")
    if not (summed and made):
        return _product(ledger, x, ledger.as_data(weight), given, output, call)
    mixed = [mine[axis] for axis in x.varying() if mine[axis] not in summed]
    if mixed and (len(mixed) > 1 or mixed[0] not in shared or len(x.varying()) > 1):
        x = ledger.drop(x, "is contracted while other axes carry channels too")
    for letter in summed:
        nodes = weight_nodes(weight, its.index(letter))
        axis = mine.index(letter)
        read = x.vector(axis) if set(x.varying()) <= {axis} else np.zeros(len(nodes), np.int64)
        ledger.join(nodes, read, "reads channels of fixed width")
        ledger.claim(nodes, "in")
    for letter in shared:
        ledger.freeze(weight_nodes(weight, its.index(letter)), "has a product of its own for each entry")
        x = ledger.drop(x, "has a product of its own for each entry") if x.labelled() else x
    rows = {c: weight_nodes(weight, its.index(c)) for c in made}
    for nodes in rows.values():
        ledger.claim(nodes, "out", producer=True)
    keep = made[-1]
    for letter in made[:-1]:
        ledger.freeze(rows[letter], "lies across another channel axis")
    record_macs(ledger, weight, prod(call.shape) // prod(len(n) for n in rows.values()))
    return along(rows[keep], output.index(keep), call.shape)


def _product(ledger: Ledger, x: Labels, y: Labels, given: list[str], output: str, call: Call) -> Labels:
    """Does the product of two activations, as a matrix product over the letters that are summed."""
    summed = [c for c in given[0] if c in given[1] and c not in output]
    sides = []
    for labels, letters, others in ((x, given[0], given[1]), (y, given[1], given[0])):
        lost = [i for i, c in enumerate(letters) if c not in output and c not in others]
        if set(lost) & set(labels.varying()):
            labels = ledger.drop(labels, "einsum sums over its channels")
        sides.append((labels, letters))
    contracted = any(labels.varies(letters.index(c)) for labels, letters in sides for c in summed)
    if contracted:
        mixed = "is contracted while other axes carry channels too"
        shared = {c for c in given[0] if c in given[1]}
        free = any(letters[axis] not in shared for labels, letters in sides for axis in labels.varying())
        parts = []
        for labels, letters in sides:
            labels = ledger.drop(labels, mixed) if free else labels
            for axis, letter in enumerate(letters):
                if letter in output:
                    labels = ledger.tie(labels, axis)
            parts.append(_arranged(labels, letters, summed))
        ledger.meet_labels(*parts)
        return blank(call.shape)
    left, right = (_arranged(labels, letters, list(output)) for labels, letters in sides)
    own = [
        {letters[a] for a in labels.varying()} - {c for c in given[0] if c in given[1]}
        for labels, letters in sides
    ]
    if own[0] and own[1]:
        left, right = (ledger.drop(v, "lies across another channel axis") for v in (left, right))
    return Labels(ledger.meet_labels(left, right).data, call.shape)


def _arranged(labels: Labels, letters: str, order: list[str]) -> Labels:
    """Returns the labels with their axes in an order of letters; those they lack have size 1."""
    there = [c for c in order if c in letters]
    gone = tuple(i for i, c in enumerate(letters) if c not in order)
    data: IntArray = labels.data
    for axis in gone:  # uniform along them by now
        data = data.take([0], axis)
    left = [c for c in letters if c in order]
    data = data.squeeze(gone).transpose([left.index(c) for c in there])
    sizes = dict(zip(letters, labels.shape, strict=True))
    shape = tuple(sizes.get(c, 1) for c in order)
    full = data.reshape([data.shape[there.index(c)] if c in there else 1 for c in order])
    return Labels(full, shape)

"""Costs of many candidates at once, without a plan: sizes of tensors as products of kept shares."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prunefront.search.space.encoding import Encoding, Floats, Rows


class Costs(Protocol):
    """A model of costs that are known before a candidate is measured. amounts: the names of these costs."""

    @property
    def amounts(self) -> Collection[str]: ...

    def __call__(self, encoding: Encoding, rows: Rows) -> dict[str, Floats]:
        """Returns each cost's values [n], by name, for candidates given as rows [n, G]."""
        ...


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of a network whose tensors shrink along two axes.

    rows, columns: the share of either axis of each of T tensors that stays, linear in the groups' kept shares [G].
    Entry [t, 0] is the part that always stays, entry [t, 1 + g] the part that stays with group g; a dense row sums to
    1. inner: [T, G], 1 if group g is the layer or stack whose own kept share multiplies tensor t, else 0. amounts: cost
    -> contribution of each dense tensor [T]. bit_scaled: costs whose contribution also shrinks with the bit width of
    `inner`.

    Exact if only channels are dropped, for costs that are sums over tensors (MACs, parameters). The indices that
    granularities within layers store beside values, and a file's header, are left out.
    """

    rows: Floats
    columns: Floats
    inner: Floats
    amounts: Mapping[str, Floats]
    bit_scaled: frozenset[str] = frozenset({"size_bytes"})

    def __call__(self, encoding: Encoding, rows: Rows) -> dict[str, Floats]:
        """Returns each cost's values [n], by name, for candidates given as rows [n, G]."""
        kept = encoding.look_up(encoding.kept_fraction, rows)
        whole = np.hstack([np.ones((len(rows), 1)), kept])
        left = (whole @ self.rows.T) * (whole @ self.columns.T)
        left *= np.exp(np.log(kept) @ self.inner.T)
        widths = np.exp(np.log(encoding.look_up(encoding.bits, rows) / 32.0) @ self.inner.T)
        return {
            name: (left * widths if name in self.bit_scaled else left) @ amount
            for name, amount in self.amounts.items()
        }

"""Allocation that cuts each group in proportion to its work."""

from prunefront.pruners.allocators import Counts, Terms, allocator, fit_budget, nearest
from prunefront.pruners.plan.cost import unit_macs


@allocator(
    "mac_proportional",
    choose="to reach a budget of MACs with few units; blind to the layers' importance",
    paper="control",
)
def mac_proportional(terms: Terms) -> Counts:
    """Drops a ratio of each group in proportion to its share of the dense network's MACs.

    A group's MACs are those that go when one of its units goes, times its units (own). A ratio that exceeds the allowed
    one stops there, while the others grow. Groups without MACs stay dense.
    """
    saved = unit_macs(terms.graph)
    work = {name: saved[name] * keeps[-1] for name, keeps in terms.keeps.items() if saved[name] > 0}
    least = min(work.values(), default=1.0)

    def family(cut: float) -> Counts:
        counts = {}
        for name, macs in work.items():
            ratio = min(1.0, cut * macs / least)  # at cut 1, even the group with the least work is gone
            counts[name] = nearest(terms.keeps[name], terms.keeps[name][-1] * (1.0 - ratio))
        return counts

    return fit_budget(terms, family)

"""The same ratio everywhere: a width multiplier."""

from prunefront.pruners.allocators import Counts, Terms, allocator, fit_budget, nearest


@allocator(
    "uniform",
    choose="the control of every allocator; hard to beat where widths were well chosen",
    paper="control",
)
def uniform(terms: Terms) -> Counts:
    """Drops the same ratio of every group.

    The ratio is met up to the allowed counts: each group keeps the one nearest to its share.
    """

    def family(cut: float) -> Counts:
        return {name: nearest(keeps, keeps[-1] * (1.0 - cut)) for name, keeps in terms.keeps.items()}

    return fit_budget(terms, family)

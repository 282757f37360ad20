"""Checks that a search space can meet bounds on exact costs at all, before anything is scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from prunefront.choice import GroupChoice, Quantisation, pattern
from prunefront.errors import PrunefrontError, RatioError
from prunefront.pipelines.config.sections import QuantisationSection, SpaceSection
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer, Part
from prunefront.pruners.graph.pruning_plan import (
    DENSE,
    GroupPlan,
    LayerPlan,
    PruningPlan,
    inside,
    removed_blocks,
)
from prunefront.pruners.graph.shapes import shapes_of
from prunefront.pruners.plan.cost import Cost, cost, trained_scalars
from prunefront.pruners.plan.decide import channels_per_unit
from prunefront.pruners.plan.layer_counts import layers_after_cut, nearest_count
from prunefront.pruners.plan.layer_parts import layer_parts
from prunefront.pruners.storage.sizes import file_size
from prunefront.search.outcomes.constraints import EXACT, Bound, resolve
from prunefront.search.outcomes.measurement import ACCURACY, OBJECTIVES, Constraint, Measurement, Metric
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import PERCENT, GroupSpace, SearchSpace

WIDTHS = (4, 8, 16)
"""Multiples of channels that granularities within layers want; without them, more channels are never cheaper."""

NARROW = 12
"""Up to so many channels, each number may be the one at which a granularity is to be had."""

PASSES = 3
"""Over all groups; the descent has mostly ended after the first."""

SHARES = (0.5, 0.25, 0.75, 0.1, 0.9)
"""Weights of two costs against each other, where the network with the least of one is not that of the other."""

Values = Mapping[str, float]


class OverBudget(PrunefrontError):
    """A candidate misses a bound, measured or predicted, so it is not worth a score."""


class Infeasible(PrunefrontError):
    """No network of the search space meets the bounds."""


@dataclass(frozen=True, slots=True)
class Least:
    """The cheapest network that was found: as a candidate of the space, and what it costs."""

    candidate: Candidate
    values: Values


def exact_values(price: Cost) -> dict[str, float]:
    """Returns costs by the names under which they are measured."""
    return {"macs": float(price.macs), "params": float(price.params), "size_bytes": float(price.size_bytes)}


def check_bounds(
    graph: ChannelGraph,
    space: SearchSpace,
    section: SpaceSection,
    quantisation: QuantisationSection,
    bounds: Sequence[Bound],
) -> Candidate | None:
    """Returns a candidate of the space that meets all bounds on exact costs.

    None where there are no bounds, or where none was found and it is not proven that there is none.

    Raises Infeasible, with the nearest bound that can be met, and ConstraintError for bounds that contradict each other
    beside this network.
    """
    dense = exact_values(cost(graph))
    constraints = resolve(bounds, dense, EXACT)
    for bound in bounds:
        if bound.name in EXACT and bound.side == "low" and bound.limit(dense) > dense[bound.name]:
            raise Infeasible(
                f"'{bound}' cannot be met: the dense network has {_amount(bound.name, dense[bound.name])}; nearest: "
                f"'{bound.at(dense[bound.name], dense)}'"
            )
    upper = [c for c in constraints if c.high < float("inf")]

    def ways(name: str) -> str:
        return _ways(name, section, quantisation)

    found = {c.name: least(graph, space, quantisation.method, {c.name: 1.0}, widen=False) for c in upper}
    for c in upper:
        if found[c.name].values[c.name] > c.high:
            found[c.name] = least(graph, space, quantisation.method, {c.name: 1.0})
        if found[c.name].values[c.name] > c.high:
            raise Infeasible(_one(c, found[c.name].values[c.name], bounds, dense, ways))
    tried = [*found.values()]
    mixtures = _mixtures(upper) if len(upper) > 1 else iter(())
    while upper and not (able := _meeting(tried, upper)):
        weights = next(mixtures, None)
        if weights is None:
            return None
        tried.append(least(graph, space, quantisation.method, weights))
        if sum(weight * tried[-1].values[name] for name, weight in weights.items()) > 1:
            # if a network met all bounds, the weighted mean of its costs over them would be at most 1
            raise Infeasible(_together(upper, tried, bounds, dense, ways))
    return able[0] if upper else None


def least(
    graph: ChannelGraph,
    space: SearchSpace,
    quantisation: Quantisation,
    weights: Mapping[str, float],
    *,
    widen: bool = True,
) -> Least:
    """Returns the network of the space with the least weighted sum of its costs.

    weights: by macs, params and size_bytes. Over channels and bit widths it is the least there is: fewer units never
    cost more. Of a stack, the blocks stay that cost least. Within layers, every layer takes its cheapest option, and as
    a granularity may need more channels than the fewest, several widths of each channel group are tried in turn; that
    need not find the very least. widen: False leaves those trials out.
    """
    return _Descent(graph, space, quantisation, dict(weights)).run(widen)


@dataclass(slots=True)
class _Descent:
    graph: ChannelGraph
    space: SearchSpace
    quantisation: Quantisation
    weights: Mapping[str, float]
    cheapest: dict[Layer, LayerPlan] = field(default_factory=dict)

    def run(self, widen: bool) -> Least:
        groups = {g.name: g for g in self.space.groups}
        channels_ = [g for g in self.space.groups if g.kind == "channels"]
        counts = {g.name: g.keeps[0] for g in channels_}
        kept = {g.name: tuple(range(g.units)) for g in self.space.groups if g.kind == "blocks"}
        for name in kept:
            alone = {u: self.value(counts, {**kept, name: (u,)}) for u in range(groups[name].units)}
            kept[name] = tuple(sorted(sorted(alone, key=lambda u: alone[u])[: groups[name].keeps[0]]))
        if widen and any(g.allowed for g in self.space.groups):
            widths = {g.name: self.widths(g) for g in channels_}
            even = {name: next((k for k in w if k % 4 == 0), w[0]) for name, w in widths.items()}
            counts = min(
                (self.descended(start, widths, kept) for start in (counts, even)),
                key=lambda found: self.value(found, kept),
            )
        made = self.plan_keeping(counts, kept)
        choices = {p.name: p.choice for p in made.layers}
        candidate = Candidate(
            {
                g.name: g.choose(counts[g.name])
                if g.kind == "channels"
                else g.choose(len(kept[g.name]), pattern=pattern(list(kept[g.name])))
                if g.kind == "blocks"
                else choices.get(g.name, g.choose(PERCENT))
                for g in self.space.groups
            },
            "smallest",
        )
        return Least(candidate, exact_values(cost(self.graph, made)))

    def descended(
        self,
        start: Mapping[str, int],
        widths: Mapping[str, Sequence[int]],
        kept: Mapping[str, tuple[int, ...]],
    ) -> dict[str, int]:
        """Counts from which no other width of a single group is cheaper, or PASSES over all groups did not end."""
        counts, best = dict(start), self.value(start, kept)
        for _ in range(PASSES):
            before = best
            for name, options_ in widths.items():
                for count in options_:
                    value = self.value({**counts, name: count}, kept)
                    if value < best:
                        best, counts[name] = value, count
            if best == before:
                break
        return counts

    def widths(self, group: GroupSpace) -> list[int]:
        """The fewest units, the fewest that make a multiple of so many channels, and of few units all up to NARROW."""
        each = channels_per_unit(self.graph.group(group.name))
        found = [next((k for k in group.keeps if k * each % m == 0), group.keeps[0]) for m in WIDTHS]
        return sorted({group.keeps[0], *found, *(k for k in group.keeps if k * each <= NARROW)})

    def value(self, counts: Mapping[str, int], kept: Mapping[str, tuple[int, ...]]) -> float:
        price = exact_values(cost(self.graph, self.plan_keeping(counts, kept)))
        return sum(weight * price[name] for name, weight in self.weights.items())

    def plan_keeping(self, counts: Mapping[str, int], kept: Mapping[str, tuple[int, ...]]) -> PruningPlan:
        groups = tuple(
            _keeping(g.name, g.units, range(counts.get(g.name, g.units))) for g in self.graph.groups
        )
        stacks = tuple(
            _keeping(s.name, len(s.blocks), kept[s.name])
            for s in self.graph.stacks
            if s.name in kept and len(kept[s.name]) < len(s.blocks)
        )
        gone = removed_blocks(self.graph, stacks)
        offers = {g.name: g for g in self.space.groups if g.kind == "layer"}
        layers: tuple[LayerPlan, ...] = ()
        if offers:
            sizes = shapes_of(self.graph, {g.name: len(g.kept) for g in groups})
            layers = tuple(
                self.option(layer, offers[name], sizes)
                for name, layer in layers_after_cut(self.graph, groups).items()
                if name in offers and not inside(name, gone)
            )
        changed = tuple(p for p in layers if p.count is not None or p.choice.bits < 32)
        return PruningPlan(groups, stacks, changed, self.quantisation)

    def option(self, layer: Layer, offer: GroupSpace, sizes: Mapping[str, tuple[int, ...]]) -> LayerPlan:
        """The cheapest that can be made of a layer, with the batch norm that it may take in."""
        if layer not in self.cheapest:
            norm = {
                name: Part(shape, "float", width=self.graph.element_bytes.get(name, 4))
                for name, shape in sizes.items()
                if layer.norm and name.startswith(f"{layer.norm}.")
            }
            self.cheapest[layer] = min(options(layer, offer), key=lambda p: self.price(p, norm))
        return self.cheapest[layer]

    def price(self, plan: LayerPlan, norm: Mapping[str, Part]) -> float:
        granularity = None if plan.count is None else layer_granularities[plan.choice.granularity]
        parts = {f"{plan.layer.module}.{name}": p for name, p in layer_parts(plan, self.quantisation).items()}
        if granularity is None or plan.count is None:
            macs, parts = plan.layer.macs, {**parts, **norm}
        else:
            macs = granularity.macs(plan.layer, plan.count)
            parts |= {} if granularity.fuses_norm else dict(norm)
        price = Cost(macs, trained_scalars(parts), file_size(parts))
        return sum(weight * exact_values(price)[name] for name, weight in self.weights.items())


def options(layer: Layer, offer: GroupSpace) -> Iterator[LayerPlan]:
    """Everything that a space offers to make of a layer and that can be made of it, whole first.

    layer: as the channels leave it.
    """
    for bits in offer.bits:
        yield LayerPlan(layer, offer.choose(PERCENT, bits=bits), None, 0.0, 0.0)
        for name, keeps in offer.allowed.items():
            granularity = layer_granularities[name]
            if granularity.why_not(layer):
                continue
            for keep in keeps:
                choice = offer.choose(keep, granularity=name, bits=bits)
                try:
                    count = nearest_count(granularity, layer, choice.ratio)
                except RatioError:
                    continue
                yield LayerPlan(
                    layer, choice, count, choice.ratio, 1.0 - granularity.kept_share(layer, count)
                )


def check_costs(aim: PruningPlan, graph: ChannelGraph, bounds: Sequence[Constraint]) -> None:
    """Raises OverBudget where what a plan costs, which is known before it is carried out, lies outside a bound.

    The dense network is never refused, as everything is compared with it.
    """
    exact = [bound for bound in bounds if bound.name in EXACT]
    if not exact or aim.key() == DENSE:
        return
    values = exact_values(cost(graph, aim))
    for bound in exact:
        if bound.violation(values[bound.name]) > 0:
            over = values[bound.name] > bound.high
            limit = (
                f"most {_amount(bound.name, bound.high)}"
                if over
                else f"least {_amount(bound.name, bound.low)}"
            )
            raise OverBudget(
                f"it has {_amount(bound.name, values[bound.name])}, and at {limit} are asked for"
            )


def above_dense(
    bounds: Sequence[Bound], dense: Measurement, epochs: int, metric: Metric = ACCURACY
) -> str | None:
    """Returns a line about a quality that is asked for and that the dense network lacks, beyond the noise.

    Training may raise it, so the search continues. Raises Infeasible where there is none: epochs = 0.
    """
    have, noise, sign = dense[metric.name], dense.noise.get(metric.name, 0.0), metric.sign
    asked = [
        b for b in bounds if b.name == metric.name and sign * b.limit(dense.values) > sign * have + noise
    ]
    if not asked:
        return None
    bound = max(asked, key=lambda b: sign * b.limit(dense.values))
    shown = (
        f"{100 * have:.2f} ± {100 * noise:.2f} %" if metric.scale == "share" else f"{have:.4g} ± {noise:.2g}"
    )
    side = "above" if sign > 0 else "below"
    line = (
        f"'{bound}' is {side} what the dense network has on the validation images, {shown}; "
        f"nearest that it has: '{bound.at(have, dense.values)}'"
    )
    if epochs == 0:
        raise Infeasible(
            f"{line}; without training (training.epochs = 0) no network reaches it: lower the bound or train, and "
            "start again with --fresh"
        )
    return f"{line}; only training can reach it"


def _keeping(name: str, units: int, kept: Sequence[int]) -> GroupPlan:
    ratio = 1.0 - len(kept) / units
    return GroupPlan(name, GroupChoice("none", ratio), units, tuple(kept), ratio)


def _meeting(tried: Sequence[Least], upper: Sequence[Constraint]) -> list[Candidate]:
    return [one.candidate for one in tried if all(one.values[c.name] <= c.high for c in upper)]


def _mixtures(upper: Sequence[Constraint]) -> Iterator[dict[str, float]]:
    """Weights of costs over their bounds, which sum to 1: all alike, then pairs of them."""
    yield {c.name: 1 / (len(upper) * c.high) for c in upper}
    for one, other in combinations(upper, 2):
        for share in SHARES:
            yield {one.name: share / one.high, other.name: (1 - share) / other.high}


def _one(
    constraint: Constraint, value: float, bounds: Sequence[Bound], dense: Values, ways: Callable[[str], str]
) -> str:
    bound = _tightest(constraint.name, bounds, dense)
    return (
        f"'{bound}' cannot be met: the smallest network of the space has {_amount(constraint.name, value)}, "
        f"{100 * value / dense[constraint.name]:.3g} % of dense; nearest: '{bound.at(value, dense)}'; for smaller "
        f"networks {ways(constraint.name)}"
    )


def _together(
    upper: Sequence[Constraint],
    tried: Sequence[Least],
    bounds: Sequence[Bound],
    dense: Values,
    ways: Callable[[str], str],
) -> str:
    near = min(tried, key=lambda one: sum(c.violation(one.values[c.name]) for c in upper)).values
    asked = [_tightest(c.name, bounds, dense) for c in upper]
    moved = [
        b.at(near[b.name], dense) if near[b.name] > c.high else b for b, c in zip(asked, upper, strict=True)
    ]
    return (
        f"{_listed(asked)} cannot be met together, though each can alone; nearest: {_listed(moved)}; for smaller "
        f"networks {ways('size_bytes')}"
    )


def _listed(bounds: Sequence[Bound]) -> str:
    return " and ".join(f"'{b}'" for b in bounds)


def _tightest(name: str, bounds: Sequence[Bound], dense: Values) -> Bound:
    above = [b for b in bounds if b.name == name and b.side == "high"]
    return min(above, key=lambda b: b.limit(dense))


def _amount(name: str, value: float) -> str:
    return f"{value:,.0f} {OBJECTIVES[name].unit or name}"


def _ways(name: str, section: SpaceSection, quantisation: QuantisationSection) -> str:
    """Returns the keys of the study file that keep networks from being smaller."""
    ways = []
    if "channel" in section.granularities:
        ways.append(f"raise space.max_ratio (now {section.max_ratio:g})")
    if section.round_to != 1:
        ways.append(f"lower space.round_to (now {section.round_to})")
    if section.bound != "none":
        ways.append(f"set space.bound = 'none' (now {section.bound!r})")
    if section.frozen:
        ways.append(f"take modules out of space.frozen (now {', '.join(section.frozen[:3])})")
    if section.whole:
        ways.append(f"take modules out of space.whole (now {', '.join(section.whole[:3])})")
    if set(section.granularities) & set(layer_granularities):
        ways.append(f"add lower space.densities (now {min(section.densities):g})")
    else:
        ways.append("add space.granularities")
    if name == "size_bytes" and min(quantisation.bits) > 4:
        ways.append(f"add smaller bit widths to quantisation.bits (now {min(quantisation.bits)})")
    return f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]

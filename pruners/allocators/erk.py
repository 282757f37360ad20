"""Erdős–Rényi kernel densities (Evci et al. 2020, RigL, 1911.11134), for channels."""

from collections.abc import Mapping
from math import prod

from prunefront.pruners.allocators import Counts, Terms, allocator, fit_budget, nearest


@allocator(
    "erk",
    choose="without any measurement: spares small and early layers",
    paper="Evci et al. 2020, 1911.11134",
)
def erk(terms: Terms) -> Counts:
    """Keeps more of small layers: a layer's density is inverse to its size, over the sum of its dimensions.

    The paper gives densities of weights, for layers. Here a group keeps that share of its units (own): the mean density
    of the layers that produce it, weighted by their number of weights. A group without such a layer keeps the density
    of all layers together. That density is solved for the budget of MACs.
    """
    shapes = terms.graph.shapes
    made_by = {
        group.name: [m.tensor for m in group.members if m.role == "out" and len(shapes[m.tensor]) > 1]
        for group in terms.graph.groups
        if group.name in terms.keeps
    }
    layers = {tensor: shapes[tensor] for tensors in made_by.values() for tensor in tensors}

    def family(cut: float) -> Counts:
        found = erk_densities(layers, 1.0 - cut)
        counts = {}
        for name, tensors in made_by.items():
            weights = sum(prod(shapes[t]) for t in tensors)
            kept = sum(found[t] * prod(shapes[t]) for t in tensors) / weights if tensors else 1.0 - cut
            counts[name] = nearest(terms.keeps[name], terms.keeps[name][-1] * kept)
        return counts

    return fit_budget(terms, family)


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Returns layer -> share of its weights that stays, such that `density` of all weights stay.

    ε·(C_out + C_in + kH + kW)/(C_out·C_in·kH·kW) with one ε. Layers that this would overfill stay dense and ε is solved
    again for the rest, as in the authors' code. shapes: of the layers' weights. density: in [0, 1].
    """
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        wanted = density * sum(map(prod, shapes.values())) - sum(prod(shapes[name]) for name in full)
        rest = [name for name in shapes if name not in full]
        scale = wanted / sum(sum(shapes[name]) for name in rest) if rest else 0.0
        over = {name for name in rest if scale * raw[name] > 1.0}
        if not over:
            return {name: 1.0 if name in full else scale * raw[name] for name in shapes}
        # one at a time, the fullest first: the rest may fit once this one takes less
        full.add(max(rest, key=lambda name: raw[name]))

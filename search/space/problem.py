"""A search problem: space, objectives, bounds, starting points and known costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunefront.search.outcomes.measurement import Constraint, Objective
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import SearchSpace

if TYPE_CHECKING:
    from prunefront.search.space.costs import Costs


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a searcher may know of its task.

    seeds: candidates that are proposed before any others (dense, uniform ratios, global thresholds).
    scores: criterion -> group -> score per unit, for searchers that propose patterns; may be empty.
    curves: criterion -> group -> error of the group's readers at each of its `keeps`, as a share of their outputs, 0
    for dense; known before any network is made, so that fewer cuts of single groups are asked for. May be empty.
    costs: model of the candidates' costs, so that searchers need not learn them; None = not known beforehand.
    chance: quality of guessing, where the metric itself does not say; a network that is no better is worth nothing.
    evaluations: number of candidates that will be scored; 0 = not known beforehand.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    seeds: tuple[Candidate, ...] = ()
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    costs: "Costs | None" = None
    chance: float = 0.0
    evaluations: int = 0

    def meets_cost_bounds(self, costs: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Returns a mask [n] of the candidates that meet the constraints on these costs, name -> [n]."""
        fine = np.ones(len(next(iter(costs.values()))), dtype=np.bool_)
        for bound in self.constraints:
            if bound.name in costs:
                fine &= (costs[bound.name] >= bound.low) & (costs[bound.name] <= bound.high)
        return fine

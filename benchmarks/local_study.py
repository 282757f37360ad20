"""The first part of a study in this process, without Ray: the dense network, its scores, and a searcher's problem."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.prepare.knowledge import know
from prunefront.pipelines.prepare.network import NetworkSections, dense_network, planned_by
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.statistics import collect
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


def silent(line: str) -> None:
    """Drops a line of progress."""


class LocalStudy:
    """A study's network, workbench and scores. sections: of a study file. folder: for the study's files."""

    def __init__(self, sections: dict[str, Any], folder: Path) -> None:
        settings = sections | {"folder": str(folder)}
        self.config: StudyConfig = parse(settings, source="benchmark", base=Path())
        self.network = dense_network(self.config.part(NetworkSections), silent)
        self.graph = self.network.graph
        self.bench = make_bench(self.config.part(BenchSections), self.network)
        model = self.network.model
        self.knowledge = know(
            self.config.path,
            self.config.space,
            self.network,
            lambda graph, batches, needs: collect(model, graph, batches, needs),
            silent,
            asked=self.config.start.allocators,
            seed=self.config.seed,
        )
        self.scores = self.knowledge.scores
        self.bench = replace(self.bench, moments=self.knowledge.moments)

    def problem(self, **more: Any) -> Problem:
        """Returns the searcher's problem. more: further arguments of `prepare.problem`."""
        config = self.config
        return problem(
            self.graph,
            self.scores,
            config.space,
            config.goal,
            config.start,
            self.knowledge.facts,
            candidates=config.search.candidates,
            quantisation=config.quantisation,
            **more,
        )

    def plan(self, candidate: Candidate) -> PruningPlan:
        """Returns the plan of a candidate. Raises PrunefrontError for an impossible one."""
        space, quantisation = self.config.space, self.config.quantisation
        return planned_by(space, quantisation, self.network, self.scores, candidate)

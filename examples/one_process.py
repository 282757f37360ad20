"""Prune, measure and print a front in one process, without Ray or MLflow. Run: python examples/one_process.py"""

import torch

from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import batches, load
from prunefront.pipelines.measure.accuracy import accuracy
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.problem import lanes
from prunefront.pipelines.workers.train import Recipe, train
from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.scoring import score_all
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement
from prunefront.search.space.heuristics import seed_candidates
from prunefront.search.space.search_space import GroupSpace, SearchSpace

splits = load(DataSection(source="digits"))
data = splits.for_search()
dense = build(ModelSection(factory="digits_cnn"), classes=splits.classes, input_shape=(1, 8, 8))
for _ in train(dense, data, Recipe(epochs=6, learning_rate=0.1, batch_size=128)):
    pass
graph = trace(dense, torch.randn(2, 1, 8, 8))  # which channels go together
calibration = list(batches(data.train, data.transform, 128))
scores = score_all(dense, graph, ("l1", "taylor"), calibration)  # which of them matter
groups = (GroupSpace(g.name, g.units, tuple(range(4, g.units + 1)), ("l1", "taylor")) for g in graph.groups)
front = ParetoFront([OBJECTIVES["accuracy"], OBJECTIVES["macs"]])
space = SearchSpace(tuple(groups))
for candidate in seed_candidates(space, lanes(graph, scores, space), limit=24):
    chosen = plan(graph, candidate.choices, scores)
    pruned = apply(dense, graph, chosen)  # an ordinary, smaller nn.Module
    recalibrate(pruned, calibration)
    right = accuracy(pruned, splits.validation, splits.transform).value
    front.add(candidate.origin, Measurement({"accuracy": right, "macs": float(cost(graph, chosen).macs)}))
for name, point in front.members.items():
    print(f"{point['accuracy']:.3f}  {point['macs'] / 1e6:5.2f} M MACs  {name}")

"""Scores of earlier studies of the same network, published beside the front and read back, to be paid for once.

A file that is read back is somebody's word. It can mislead a search, not more: it is JSON, every candidate must lie in
the study's own space and come down to the network that the file names, and what is promoted is trained and measured
here.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import (
    LATER_TRAINING,
    DataSection,
    QuantisationSection,
    ScoringSection,
    SpaceSection,
    TaskSection,
    TrainingSection,
)
from prunefront.pipelines.journal.evaluations import Evaluation, Evaluations
from prunefront.pipelines.journal.layout import EVALUATIONS
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import ArtifactNotFound, ArtifactStore, put_json, read_json
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import (
    ACCURACY,
    COSTS,
    Measurement,
    Metric,
    Objective,
    Outcome,
    metrics_in,
    quality_of,
)
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import SearchSpace

FORMAT = 2

MOST = 100_000
"""Evaluations that are read of one study."""

MOST_SEEDS = 16
"""Networks of earlier fronts that a search begins with where their scores do not count here."""

LONGEST_ORIGIN = 200
"""Characters of a candidate's origin; ours are a few words."""

SCORED_BY = ("validation_limit", "train_images")
"""Keys of [scoring] that a score depends on."""

LATER_KEYS = ("image", "label", "classes", "shuffle", "size", "resize", "stream", "loaders", "cache_gb")
"""Keys of [data] that came later: unset, they are in no digest, so that what earlier versions scored still counts."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Digests of what was scored and how: see `network_digest` and `conditions`."""

    network: str
    conditions: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """One earlier study as it was read. uri: of its artifacts."""

    uri: str
    signature: Signature
    rows: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Start of a search. known: scores that are as good as its own. seeds: candidates to be scored anew."""

    known: tuple[Evaluation, ...] = ()
    seeds: tuple[Candidate, ...] = ()


def network_digest(weights: Mapping[str, NDArray[np.generic]], graph: ChannelGraph) -> str:
    """Returns a digest of the dense network: names, shapes and values of its tensors, and at how many positions each
    multiplies, since equal weights with other strides or a larger input are another network. What is frozen changes
    nothing."""
    digest = blake2b(digest_size=16)
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(repr((name, array.shape, array.dtype.str)).encode())
        digest.update(array.data)
    digest.update(json.dumps([[op.weight, op.positions] for op in graph.ops]).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ScoreSections:
    """The settings that the score of an architecture depends on."""

    seed: int
    task: TaskSection
    data: DataSection
    space: SpaceSection
    quantisation: QuantisationSection
    scoring: ScoringSection
    training: TrainingSection


def conditions(study: ScoreSections, data: Mapping[str, str], precision: str) -> str:
    """Digest of everything but the network that the score of an architecture depends on. data: digests of the images by
    part; the test images are in no score. precision: that networks are run in, as `auto` came out here."""
    space, section = study.space, study.data.model_dump(mode="json")
    later = {name for name in LATER_KEYS if section[name] is None}
    said = {
        "images": {name: digest for name, digest in data.items() if name != "test"},
        "data": {k: v for k, v in section.items() if k not in ("train", "test") and k not in later},
        "search": {
            name: getattr(study.scoring, name) for name in SCORED_BY
        },  # as digests of earlier versions have it
        "calibration_images": space.calibration_images,
        "words": study.quantisation.method.to_json(),
        "seed": study.seed,
        "precision": precision,
        "training": _training(study.training) if study.scoring.train_images else None,
        **({} if space.repair == "criterion" else {"repair": space.repair}),
    }
    if study.task != TaskSection():  # as digests of versions before tasks have it
        said["task"] = study.task.model_dump(mode="json")
    text = json.dumps(said, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _training(section: TrainingSection) -> dict[str, Any]:
    """Returns [training] for a digest, as versions before its later keys have it."""
    plain, before = section.model_dump(mode="json"), TrainingSection()
    return {k: v for k, v in plain.items() if k not in LATER_TRAINING or v != getattr(before, k)}


def publish(store: ArtifactStore, signature: Signature, found: Evaluations) -> None:
    """Puts what a study scored where `read` finds it, without what it only predicted."""
    scored = replace(found, rows=tuple(replace(row, outcome=_scored(row.outcome)) for row in found.rows))
    put_json(store, EVALUATIONS, {"format": FORMAT, **asdict(signature), "evaluations": scored.to_json()})


def read(uri: str, endpoint_url: str | None = None) -> Earlier:
    """The evaluations at a study's artifact URI. Raises PrunefrontError where there are none that can be read."""
    try:
        store = open_store(uri, endpoint_url)
        where = f"{store.uri}/{EVALUATIONS}"
        data = read_json(store, EVALUATIONS)
    except ArtifactNotFound:
        raise PrunefrontError(
            f"warm_start: there is no {where}; give the artifact URI of a study whose first stage has ended "
            "(`prunefront front` shows it as where its networks lie), or take it off start.warm_start"
        ) from None
    except PrunefrontError as error:
        raise PrunefrontError(f"warm_start: {error}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise PrunefrontError(
            f"warm_start: {where} has format {version!r:.40}, and this prunefront reads {FORMAT}; use the version that "
            "wrote it, or take it off start.warm_start"
        )
    try:
        if len(data["evaluations"]["key"]) > MOST:
            raise ValueError(f"more than {MOST:,} evaluations")
        signature = Signature(str(data["network"]), str(data["conditions"]))
        rows = Evaluations.from_json(data["evaluations"]).rows
        for row in rows:
            _check_texts(row)
    except (
        PrunefrontError,  # of a choice that cannot be
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
    ) as error:
        # names from the file are quoted in it, and may hold what a terminal obeys
        reason = f"{type(error).__name__}: {error}".encode("unicode_escape").decode()
        raise PrunefrontError(
            f"warm_start: {where} is no table of evaluations ({reason:.120}); take it off start.warm_start"
        ) from None
    return Earlier(uri, signature, rows)


def check_network(earlier: Iterable[Earlier], signature: Signature) -> None:
    """Raises PrunefrontError where an earlier study is of another network than this one. signature: of this one."""
    for study in earlier:
        if study.signature.network != signature.network:
            raise PrunefrontError(
                f"warm_start: {study.uri} is of another dense network (other weights, layers or input size), so its "
                "scores say nothing here; take it off start.warm_start, or give the network that it was made from"
            )


def warm_start(
    earlier: Sequence[Earlier],
    space: SearchSpace,
    realised: Callable[[Candidate], str],
    objectives: Sequence[Objective],
    signature: Signature,
    say: Callable[[str], None],
) -> WarmStart:
    """Returns what of earlier studies is of use here; says a line about each.

    signature: of the scores of this study. realised: the key of what a candidate comes down to here; raises
    PrunefrontError where it comes down to nothing.
    Raises PrunefrontError for a study of another network.
    """
    check_network(earlier, signature)
    metric = quality_of(objectives) or ACCURACY
    known: dict[str, Evaluation] = {}
    seeds: dict[str, Candidate] = {}
    for study in earlier:
        fitting = [row for row in study.rows if _fits(row, space, realised, metric)]
        counted = f"{len(fitting)} of its {len(study.rows)} scores"
        if study.signature == signature:
            for row in fitting:
                known.setdefault(row.key, replace(row, seconds=None, trained=None))
            say(
                f"warm start from {study.uri}: {counted} are used; the others belong to another space or failed"
            )
        else:
            front = _front(fitting, objectives)
            for row in front:
                seeds.setdefault(row.key, row.candidate)
            say(
                f"warm start from {study.uri}: its scores come from other images or settings, so {len(front)} "
                f"networks of its front are scored again first ({counted} are of this space)"
            )
    return WarmStart(tuple(known.values()), tuple(c for key, c in seeds.items() if key not in known))


def to_event(found: WarmStart) -> dict[str, Any]:
    """For the journal, from which a study goes on without the earlier ones."""
    table = Evaluations("", found.known).to_json()
    return {"known": table, "seeds": [candidate.to_json() for candidate in found.seeds]}


def from_event(event: Mapping[str, Any]) -> WarmStart:
    """Inverse of `to_event`."""
    return WarmStart(
        Evaluations.from_json(event["known"]).rows, tuple(Candidate.from_json(c) for c in event["seeds"])
    )


def _scored(outcome: Outcome) -> Outcome:
    """The outcome's quality and costs, without predictions, which are of a study's own latency table."""
    if not isinstance(outcome, Measurement):
        return outcome
    names = {*metrics_in(outcome.values)[:1], *COSTS}
    values, noise = ({k: v for k, v in d.items() if k in names} for d in (outcome.values, outcome.noise))
    return Measurement(values, noise)


def _check_texts(row: Evaluation) -> None:
    """Raises ValueError for a key or an origin that is no short text: both are shown and recorded."""
    origin = row.candidate.origin
    if not isinstance(origin, str) or len(origin) > LONGEST_ORIGIN or not origin.isprintable():
        raise ValueError(f"origins must be printable text of at most {LONGEST_ORIGIN} characters")


def _possible(values: Mapping[str, float], metric: Metric) -> bool:
    """Tells whether the value of the metric, where there is one, can be had."""
    value = values.get(metric.name, 0.5)
    if metric.scale == "share":
        return value <= 1 and (value >= 0 or metric.chance == 0.0)
    return value > 0 or metric.scale == "real"


def _fits(row: Evaluation, space: SearchSpace, realised: Callable[[Candidate], str], metric: Metric) -> bool:
    """Tells whether a row holds a measurement of a network that this search could have asked for."""
    if not isinstance(row.outcome, Measurement):
        return False
    values, noise = row.outcome.values, row.outcome.noise
    if any(type(v) not in (int, float) for v in (*values.values(), *noise.values())):
        return False
    costs = {name: v for name, v in values.items() if name in COSTS}
    if any(v < 0 for v in (*costs.values(), *noise.values())) or not _possible(values, metric):
        return False
    if not noise.keys() <= values.keys() <= {metric.name, *COSTS}:
        return False
    if not values.keys() >= {metric.name, "macs", "params", "size_bytes"}:
        return False
    try:
        return space.contains(row.candidate) and realised(row.candidate) == row.key
    except (PrunefrontError, TypeError, ValueError, OverflowError):
        return False


def _front(rows: Iterable[Evaluation], objectives: Sequence[Objective]) -> list[Evaluation]:
    """At most MOST_SEEDS rows of those that no other beats on what was scored of the objectives, spread over them."""
    found = {row.key: row for row in rows}
    measured = {key: row.outcome for key, row in found.items() if isinstance(row.outcome, Measurement)}
    shared = [o for o in objectives if all(o.name in m.values for m in measured.values())]
    front = ParetoFront(shared or objectives)
    for key, measurement in measured.items():
        front.add(key, measurement)
    best = list(front.members)
    if len(best) > MOST_SEEDS:
        best = [best[i] for i in np.unique(np.linspace(0, len(best) - 1, MOST_SEEDS).round().astype(int))]
    return [found[key] for key in best]

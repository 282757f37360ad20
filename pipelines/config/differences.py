"""Settings in which two studies differ."""

from collections.abc import Mapping

from prunefront.pipelines.config.earlier_keys import under_new_keys
from prunefront.pipelines.config.sections import LATER_TRAINING, StudyConfig, TaskSection, TrainingSection
from prunefront.pipelines.events.redaction import redact

BEFORE = {
    "space.repair": "criterion",
    "task.name": TaskSection().name,
    **{f"training.{key}": getattr(TrainingSection(), key) for key in LATER_TRAINING},
}
"""Keys that are newer than some studies -> what these did without them."""

KEPT_WHERE = frozenset({"folder", "artifacts.state"})
"""Keys that say where a study's state is, not what it searches."""


def differences(config: StudyConfig, kept: Mapping[str, object]) -> list[str]:
    """Returns the keys, dotted, in which `config` differs from the one that an earlier run kept.

    [cluster] may differ, and where the study is kept: it may go on elsewhere.
    """
    ours, theirs = _flat(redact(config.to_json())), BEFORE | _flat(under_new_keys(kept)[0])
    return sorted(k for k in _differing(ours, theirs) if not k.startswith("cluster.") and k not in KEPT_WHERE)


def between(first: StudyConfig, second: StudyConfig) -> dict[str, tuple[object, object]]:
    """Returns dotted key -> both values, for every key in which two studies differ; passwords are hidden."""
    ours, theirs = (_flat(redact(config.to_json())) for config in (first, second))
    return {k: (ours.get(k), theirs.get(k)) for k in sorted(_differing(ours, theirs))}


def _differing(ours: Mapping[str, object], theirs: Mapping[str, object]) -> set[str]:
    return {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}


def as_begun(config: StudyConfig, kept: Mapping[str, object]) -> StudyConfig:
    """Returns the study with what an earlier run did where neither its file nor the one that was kept says so.

    kept: configuration of the earlier run. A study goes on as it began, whatever became the default since.
    """
    space = kept.get("space")
    if "repair" in config.space.model_fields_set or not isinstance(space, Mapping) or "repair" in space:
        return config
    return config.model_copy(
        update={"space": config.space.model_copy(update={"repair": BEFORE["space.repair"]})}
    )


def _flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat

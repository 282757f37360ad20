"""Settings in which two studies differ."""

from collections.abc import Mapping

from prunefront.pipelines.config.moved import under_new_keys
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.redaction import redact

KEPT_WHERE = frozenset({"folder", "artifacts.state"})
"""Keys that say where a study's state is, not what it searches."""


def differences(config: StudyConfig, kept: Mapping[str, object]) -> list[str]:
    """Returns the keys, dotted, in which `config` differs from the one that an earlier run kept.

    [cluster] may differ, and where the study is kept: it may go on elsewhere.
    """
    ours, theirs = _flat(redact(config.to_json())), _flat(under_new_keys(kept)[0])
    return sorted(
        k
        for k in ours.keys() | theirs.keys()
        if not k.startswith("cluster.") and k not in KEPT_WHERE and ours.get(k) != theirs.get(k)
    )


def _flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat

"""The model card of an artifact, in Markdown: the network, its origin, its figures, and how to load it.

Its content comes from plan.json and measurement.json, whose names may be anything. They are written as code spans, in
which Markdown and HTML mean nothing.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan
from prunefront.search.outcomes.measurement import ACCURACY, Metric, metrics_in

NOT_STATED = "not stated: the licence of the dense network and of its data applies"

LOADING = """\
PyTorch, from the weights and the plan. `prunefront` unpickles nothing and checks both against the manifest;
`make_dense_network()` is the factory named above.

```python
from pathlib import Path

from prunefront.pruners.saved import load_network

network = load_network(make_dense_network(), Path("best"))  # an nn.Module in eval mode
```

ONNX Runtime, without `prunefront`; the batch size is free:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("best/model.onnx", providers=["CPUExecutionProvider"])
images = np.zeros((1, {shape}), np.float32)  # normalised as in training
(logits,) = session.run(None, {{"images": images}})
```
"""

PROGRAM = """\
`model.pt2` is for `torch.export.load`, which **can run code that a file holds**. Load it only if you trust whoever
published it; otherwise make your own from the weights: `prunefront export best --format pt2`.
"""

NO_PROGRAM = """\
For `torch.export.load`: `prunefront export best --format pt2` makes a `.pt2` file from the weights.
"""


def card(description: Mapping[str, Any], measurement: Mapping[str, Any], *, program: bool) -> str:
    """Returns the text of an artifact's card.md, the same for the same content.

    description: content of plan.json. measurement: content of measurement.json; before the test images were seen, it
    has the quality on validation images, and the card says so. Licences are stated by `license` in the sections
    `model` and `data`. program: whether the artifact holds `model.pt2`. Raises PrunefrontError for content that no
    study writes.
    """
    try:
        plan = PruningPlan.from_json(_section(description, "plan"))
        lines = [
            *_front_matter(_section(description, "model").get("license")),
            f"# {_code(measurement.get('key'))}",
            "",
            "An image classifier, made smaller by prunefront.",
            "",
            "## What it is",
            "",
            *_network(description, measurement, plan),
            "",
            "## From what",
            "",
            *_origin(description, measurement),
            "",
            "## How it was measured",
            "",
            *_figures(measurement),
            "",
            "## Licence",
            "",
            *_licences(description),
            "",
            "## How to load it",
            "",
            LOADING.format(shape=", ".join(str(int(n)) for n in description["input_shape"] or ())),
            PROGRAM if program else NO_PROGRAM,
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # raised by plain code on JSON of the wrong form
        raise PrunefrontError(
            f"no card can be written: plan.json or measurement.json is not what prunefront writes "
            f"({type(error).__name__}: {error!s:.120})"
        ) from None
    return "\n".join(lines)


def _network(
    description: Mapping[str, Any], measurement: Mapping[str, Any], plan: PruningPlan
) -> Iterator[str]:
    if control := measurement.get("control"):
        yield f"- a control, {_code(control)}, of {_code(measurement.get('of'))}: trained for comparison"
    yield f"- plan: {_code(plan.key())}" + (", nothing is pruned" if plan.key() == DENSE else "")
    if cut := [g for g in plan.groups if g.achieved > 0]:
        mean = sum(g.achieved for g in cut) / len(cut)
        yield f"- channels: fewer in {len(cut)} of {len(plan.groups)} groups, {mean:.0%} of theirs on average"
    if gone := sum(s.units - len(s.kept) for s in plan.stacks):
        yield f"- blocks: {gone} taken out"
    within = [layer for layer in plan.layers if layer.count is not None]
    for name in sorted({layer.choice.granularity for layer in within}):
        dropped = [layer.achieved for layer in within if layer.choice.granularity == name]
        yield f"- within layers: {_code(name)} in {len(dropped)}, dropping {sum(dropped) / len(dropped):.0%} on average"
    for bits, count in sorted(Counter(plan.bit_widths().values()).items()):
        yield f"- weights: {bits} bits in {count} layer{'s' * (count > 1)}, as {_code(plan.quantisation.quantiser)}"
    yield (
        "- `model.onnx` computes in 8-bit integers"
        if description.get("onnx") == "int8"
        else "- `model.onnx` computes in 32-bit floats"
    )
    dense = description.get("dense") or {}
    for key, name in (("macs", "multiply-accumulates"), ("params", "parameters"), ("size_bytes", "bytes")):
        value = measurement.get(key, description.get(key))
        if value is None and "validation" in measurement:
            value = measurement["validation"]["values"].get(key)
        if value is not None:
            yield f"- {name}: {_count(value)}" + _fraction(value, dense.get(key))


def _origin(description: Mapping[str, Any], measurement: Mapping[str, Any]) -> Iterator[str]:
    model, data = _section(description, "model"), _section(description, "data")
    yield f"- dense network: {_code(model['factory'])}" + _options(model)
    classes = "" if description["classes"] is None else f", {int(description['classes'])} classes"
    yield f"- data: {_code(data['source'])}" + _options(data) + classes
    for part in ("train", "test"):
        if data.get(part) is not None:
            # without their folder, which is private
            yield f"- {part} images: {_code(PurePosixPath(str(data[part])).name)}"
    yield f"- study: {_code(description.get('study'))}"
    if measurement.get("epochs"):
        yield f"- trained on for {_count(measurement['epochs'])} epochs"


def _amount(value: float, metric: Metric) -> str:
    return f"{value:.2%}" if metric.scale == "share" else f"{value:.4g} {metric.unit}".rstrip()


def _figures(measurement: Mapping[str, Any]) -> Iterator[str]:
    metric = ACCURACY if measurement.get("metric") is None else Metric(**measurement["metric"])
    if metric.name in measurement:
        low, high = float(measurement[f"{metric.name}_low"]), float(measurement[f"{metric.name}_high"])
        value = float(measurement[metric.name])
        yield (
            f"- {_code(metric.name) if metric != ACCURACY else metric.name}: {_amount(value, metric)} (95 % interval "
            f"{_amount(low, metric)} to {_amount(high, metric)}) on "
            f"{_count(measurement['images'])} test images, which no step of the search saw"
        )
    elif "validation" in measurement:
        values, noise = (_section(measurement["validation"], k) for k in ("values", "noise"))
        for name in metrics_in(values):
            shown = ACCURACY if name == ACCURACY.name else Metric(str(name), "max")
            yield (
                f"- {name}: {_amount(float(values[name]), shown)} ± {_amount(float(noise.get(name, 0)), shown)} on "
                "validation images, by which the search chose; test images were not looked at yet"
            )
    latency, where = _section(measurement, "latency"), _section(measurement, "environment")
    yield (
        f"- latency: {float(latency['ms']):.3f} ms, {float(latency['ratio']):.3f} times the dense network's (95 % "
        f"interval {float(latency['ratio_low']):.3f} to {float(latency['ratio_high']):.3f}, {_count(latency['pairs'])} "
        "pairs in turn)"
    )
    runtime, batch = where.get("runtime", "onnxruntime"), int(where.get("batch_size", 1))
    yield (
        f"- on: {_code(runtime)}, {int(where['threads'])} thread{'s' * (int(where['threads']) != 1)}, batch of "
        f"{batch}, {_code(where.get('processor'))} ({_code(where.get('machine'))})"
    )
    yield (
        f"- versions: torch {_code(where.get('torch'))}, ONNX Runtime {_code(where.get('onnxruntime'))}; measured "
        f"{_code(where.get('measured'))}"
    )


def _licences(description: Mapping[str, Any]) -> Iterator[str]:
    for part, name in (("model", "dense network"), ("data", "data")):
        stated = _section(description, part).get("license")
        yield f"- {name}: {_code(stated) if stated else NOT_STATED}"


def _front_matter(licence: object) -> Iterator[str]:
    """Yields YAML for model hubs. A licence is written only as an identifier, which YAML cannot misread."""
    yield "---"
    if isinstance(licence, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9.+-]{0,39}", licence):
        yield f'license: "{licence.lower()}"'
    elif licence:
        yield "license: other"
    yield from ("pipeline_tag: image-classification", "tags:", "- prunefront", "- pruning", "---", "")


def _section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data[key]
    if not isinstance(value, Mapping):
        raise TypeError(f"{key} must be an object")
    return value


def _options(section: Mapping[str, Any]) -> str:
    options = section.get("options") or {}
    return (
        f" with {_code(', '.join(f'{name}={value!r}' for name, value in options.items()))}" if options else ""
    )


def _code(value: object, limit: int = 200) -> str:
    """Returns a value as a code span on one line. Backticks, which would end it, become apostrophes."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split()).replace("`", "'")
    if value is None or not text:
        return "not stated"
    return f"`{text if len(text) <= limit else text[: limit - 1] + '…'}`"


def _count(value: object) -> str:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r:.40} is no count")
    return f"{round(number):,}"


def _fraction(value: float, dense: object) -> str:
    if not isinstance(dense, int | float) or isinstance(dense, bool) or not dense > 0:
        return ""
    return f", {value / dense:.3g} times the dense network's {_count(dense)}"

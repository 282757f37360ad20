"""A card says what was measured, on what, and under which licence; a hostile name is text in it and nothing else."""

import re
from typing import Any

import pytest

from prunefront.choice import GroupChoice, Quantisation
from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.card import card
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.graph.pruning_plan import GroupPlan, LayerPlan, PruningPlan

WITHIN = LayerPlan(
    Layer("layer1.0.conv1.weight", "layer1.0.conv1", (8, 6, 3, 3), 64),
    GroupChoice("l1", 0.5, "gather", 8),
    3,
    0.5,
    0.5,
)
PLAN = PruningPlan(
    (
        GroupPlan("conv1", GroupChoice("l1", 0.25), 16, tuple(range(12)), 0.25),
        GroupPlan("layer1", GroupChoice("l1", 0.0), 16, tuple(range(16)), 0.0),
    ),
    (GroupPlan("stage", GroupChoice("l1", 0.5, "block"), 3, (0, 2), 0.5),),
    (WITHIN,),
    Quantisation("fixed_point"),
)


def description(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "resnet20", "options": {"width": 8}, "license": "Apache-2.0"},
        "data": {"source": "parquet", "train": "/home/someone/data/train.parquet", "test": "test.parquet"},
        "study": "cifar",
        "classes": 10,
        "input_shape": [3, 32, 32],
        "plan": PLAN.to_json(),
        "onnx": "int8",
        "dense": {"macs": 40_000_000, "params": 270_000, "size_bytes": 1_080_000},
        **changes,
    }


ENVIRONMENT = {
    "runtime": "onnxruntime",
    "batch_size": 1,
    "torch": "2.13.0",
    "onnxruntime": "1.32.0",
    "machine": "x86_64",
    "processor": "Some CPU @ 2.0",
    "threads": 2,
    "measured": "2026-03-04",
}
LATENCY = {"ms": 0.5, "dense_ms": 1.0, "ratio": 0.5, "ratio_low": 0.48, "ratio_high": 0.52, "pairs": 100}
TESTED = {
    "key": "3f6c0d1e9a2b4c57",
    "accuracy": 0.8714,
    "accuracy_low": 0.8647,
    "accuracy_high": 0.8778,
    "images": 10_000,
    "macs": 20_000_000,
    "params": 135_000,
    "size_bytes": 108_000,
    "epochs": 12,
    "control": "",
    "latency": LATENCY,
    "environment": ENVIRONMENT,
}


def test_says_what_the_network_is_and_how_it_was_measured() -> None:
    text = card(description(), TESTED, program=True)
    for fact in (
        "# `3f6c0d1e9a2b4c57`",
        f"plan: `{PLAN.key()}`",
        "fewer in 1 of 2 groups, 25% of theirs",
        "blocks: 1 taken out",
        "`gather` in 1, dropping 50%",
        "8 bits in 1 layer, as `fixed_point`",
        "computes in 8-bit integers",
        "multiply-accumulates: 20,000,000, 0.5 times the dense network's 40,000,000",
        "bytes: 108,000, 0.1 times",
        "dense network: `resnet20` with `width=8`",
        "data: `parquet`, 10 classes",
        "train images: `train.parquet`",
        "12 epochs",
        "87.14% (95 % interval 86.47% to 87.78%) on 10,000 test images",
        "0.500 ms, 0.500 times the dense network's (95 % interval 0.480 to 0.520, 100 pairs in turn)",
        "`onnxruntime`, 2 threads, batch of 1, `Some CPU @ 2.0` (`x86_64`)",
        "torch `2.13.0`, ONNX Runtime `1.32.0`; measured `2026-03-04`",
        "load_network(make_dense_network()",
        "np.zeros((1, 3, 32, 32)",
        "can run code",
    ):
        assert fact in text, fact
    assert "someone" not in text  # in which folder the images lay
    assert card(description(), TESTED, program=True) == text
    without = card(description(), TESTED, program=False)
    assert "model.pt2" not in without
    assert "`prunefront export best --format pt2` makes a `.pt2` file" in without


def test_before_the_test_images_were_seen_it_says_so() -> None:
    values = {"accuracy": 0.9, "macs": 20e6, "params": 135e3, "size_bytes": 108e3}
    measured = {
        "key": "a",
        "validation": {"values": values, "noise": {"accuracy": 0.01}},
        "latency": LATENCY,
        "environment": ENVIRONMENT,
    }
    text = card(description(), measured, program=True)
    assert "90.00% ± 1.00% on validation images" in text
    assert "not looked at yet" in text
    assert "bytes: 108,000, 0.1 times" in text


@pytest.mark.parametrize(
    ("stated", "front", "said"),
    [
        ("Apache-2.0", 'license: "apache-2.0"', "dense network: `Apache-2.0`"),
        ("no", 'license: "no"', "dense network: `no`"),  # a bare `no` is false in YAML
        ("my own, see LICENCE", "license: other", "`my own, see LICENCE`"),
        (None, None, "dense network: not stated: the licence of the dense network and of its data applies"),
    ],
)
def test_the_licence_is_the_one_that_is_stated(stated: str | None, front: str | None, said: str) -> None:
    model = {"factory": "resnet20", "license": stated}
    text = card(
        description(model=model, data={"source": "digits", "license": "CC-BY-4.0"}), TESTED, program=True
    )
    matter = text.split("---")[1].splitlines()
    assert [line for line in matter if line.startswith("license")] == ([front] if front else [])
    assert said in text
    assert "- data: `CC-BY-4.0`" in text


HOSTILE = (
    "x`\n---\nlicense: mit\n# Owned\n<script>alert(1)</script> [a](javascript:b) | {0} \x1b[31m\u2028"
    + "y" * 5000
)


def test_a_hostile_name_is_a_code_span_on_one_line() -> None:
    plan = PruningPlan(
        (),
        (),
        (LayerPlan(WITHIN.layer, GroupChoice("l1", 0.5, HOSTILE, 8), 3, 0.5, 0.5),),
        Quantisation(HOSTILE),
    )
    said = description(
        model={"factory": HOSTILE, "options": {HOSTILE: HOSTILE}, "license": HOSTILE},
        data={"source": HOSTILE, "train": HOSTILE, "options": {"a": HOSTILE}, "license": HOSTILE},
        study=HOSTILE,
        plan=plan.to_json(),
    )
    names = {name: HOSTILE for name in ENVIRONMENT if name not in ("threads", "batch_size")}
    text = card(
        said,
        {
            **TESTED,
            "key": HOSTILE,
            "control": HOSTILE,
            "of": HOSTILE,
            "environment": {**ENVIRONMENT, **names},
        },
        program=True,
    )
    assert len(text) < 8000
    plain = re.sub(r"`[^`\n]+`", "", text.replace("```", ""))  # what is in no code span
    for mark in ("<script", "Owned", "javascript", "license: mit", "yyy", "\x1b", "\u2028", "{0}"):
        assert mark not in plain
    assert "\x1b" not in text
    harmless = card(description(), TESTED, program=True)
    # each line still begins as it does in a card without hostile names
    begins = {line.split("`")[0].strip() for line in text.splitlines()}
    assert {line for line in begins if line.startswith(("#", "---", "license"))} == {
        line
        for line in {x.split("`")[0].strip() for x in harmless.splitlines()}
        if line.startswith(("#", "---"))
    } | {"license: other"}


BAD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no plan": ({"plan": None}, {}),
    "no latency": ({}, {"latency": {}}),
    "accuracy text": ({}, {"accuracy": "high"}),
    "images infinite": ({}, {"images": float("inf")}),
    "shape text": ({"input_shape": ["a"]}, {}),
    "model a list": ({"model": []}, {}),
    "threads text": ({}, {"environment": {**ENVIRONMENT, "threads": "`"}}),
}


@pytest.mark.parametrize(("said", "measured"), BAD.values(), ids=BAD)
def test_content_of_another_form_is_one_clear_error(said: dict[str, Any], measured: dict[str, Any]) -> None:
    with pytest.raises(PrunefrontError, match="no card can be written") as raised:
        card(description(**said), {**TESTED, **measured}, program=True)
    assert "\n" not in str(raised.value)

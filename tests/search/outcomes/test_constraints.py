"""Texts of bounds: each is read as it is meant, and an ambiguous one is refused with both meanings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.search.outcomes.constraints import (
    EXACT,
    UNITS,
    Bound,
    ConstraintError,
    check_compatible,
    check_metrics,
    describe_violations,
    parse,
    resolve,
)
from prunefront.search.outcomes.measurement import OBJECTIVES, Constraint, Metric

DENSE = {"accuracy": 0.9, "macs": 40_000_000.0, "params": 270_000.0, "size_bytes": 1_000_000.0}


@st.composite
def bounds(draw: st.DrawFn) -> Bound:
    """Draws any possible bound."""
    name = draw(st.sampled_from([*OBJECTIVES]))
    side = (
        draw(st.sampled_from(["low", "high"])) if name in EXACT else "low" if name == "accuracy" else "high"
    )
    shares = st.floats(0, 10, exclude_min=True)
    if name == "accuracy":
        relative = draw(st.sampled_from(["", "ratio", "points"]))
        values = {"": st.floats(0, 1), "ratio": shares, "points": st.floats(-0.999, 0.999)}[relative]
        return Bound(name, side, draw(values), relative)
    relative = "" if name == "latency_ratio" else draw(st.sampled_from(["", "ratio"]))
    if relative or name == "latency_ratio":
        return Bound(name, side, draw(shares), relative)
    least = 1.0 if name in EXACT else 1e-6
    return Bound(name, side, draw(st.floats(least, 1e15)), relative)


@given(bounds())
def test_what_is_written_is_read_again(bound: Bound) -> None:
    assert parse(str(bound)) == bound


@given(bounds(), st.lists(st.sampled_from(["", " ", "\t", "  "]), min_size=4, max_size=4))
def test_blanks_do_not_matter(bound: Bound, blanks: list[str]) -> None:
    name, sign, amount = str(bound).split(" ", 2)
    assert parse(f"{blanks[0]}{name}{blanks[1]}{sign}{blanks[2]}{amount}{blanks[3]}") == bound


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("accuracy >= -1pt", Bound("accuracy", "low", -0.01, "points")),
        ("accuracy >= -0.5 points", Bound("accuracy", "low", -0.005, "points")),
        ("accuracy >= +0.25pp", Bound("accuracy", "low", 0.0025, "points")),
        ("accuracy >= 0.85", Bound("accuracy", "low", 0.85)),
        ("accuracy >= 85%", Bound("accuracy", "low", 0.85)),
        ("accuracy >= 99 % of dense", Bound("accuracy", "low", 0.99, "ratio")),
        ("latency_ms <= 60%", Bound("latency_ms", "high", 0.6, "ratio")),
        ("latency_ms <= 60% of dense", Bound("latency_ms", "high", 0.6, "ratio")),
        ("latency_ms <= 2.5ms", Bound("latency_ms", "high", 2.5)),
        ("latency_ms <= 2.5", Bound("latency_ms", "high", 2.5)),
        ("latency_ms <= 300us", Bound("latency_ms", "high", 0.3)),
        ("latency_ms <= 0.1s", Bound("latency_ms", "high", 100.0)),
        ("latency_ratio <= 0.6", Bound("latency_ratio", "high", 0.6)),
        ("latency_ratio<=60%", Bound("latency_ratio", "high", 0.6)),
        ("size_bytes <= 250kB", Bound("size_bytes", "high", 250_000.0)),
        ("size_bytes <= 250 KiB", Bound("size_bytes", "high", 256_000.0)),
        ("size_bytes <= 1.5MB", Bound("size_bytes", "high", 1.5e6)),
        ("size_bytes <= 1MiB", Bound("size_bytes", "high", 1_048_576.0)),
        ("size_bytes <= 250000", Bound("size_bytes", "high", 250_000.0)),
        ("macs <= 20M", Bound("macs", "high", 2e7)),
        ("macs ≤ 2e7", Bound("macs", "high", 2e7)),
        ("macs <= 20_000_000", Bound("macs", "high", 2e7)),
        ("macs >= 10%", Bound("macs", "low", 0.1, "ratio")),
        ("params <= 50%", Bound("params", "high", 0.5, "ratio")),
        ("params <= 0.5 of dense", Bound("params", "high", 0.5, "ratio")),
    ],
)
def test_each_form_means_this(text: str, bound: Bound) -> None:
    assert parse(text) == bound


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency <= 60%", "did you mean 'latency_ms'?"),
        ("acuracy >= 0.8", "did you mean 'accuracy'?"),
        ("size <= 3kB", "did you mean 'size_bytes'?"),
        ("speed <= 3", "known: accuracy, latency_ms"),
        (
            "size_bytes <= 250KB",
            "no unit 'KB'; did you mean 'kB'? size_bytes takes B, kB (1000 bytes), KiB (1024)",
        ),
        ("macs <= 20m", "did you mean 'M'?"),
        ("size_bytes <= 2ms", "size_bytes has no unit 'ms'; it takes B, kB"),
        ("latency_ms <= 3pt", "latency_ms has no unit 'pt'; it takes ms"),
        ("macs <= 20M of dense", "write a share of dense as 60%, without 'M'"),
        ("accuracy <= 90%", "write accuracy >="),
        ("latency_ms >= 3", "write latency_ms <="),
        ("macs < 20M", "write <=; a bound includes its own value"),
        ("macs > 20M", "write >=; a bound includes its own value"),
        ("macs = 20M", "write <= or >="),
        ("accuracy >= 1pt", "write -1pt for points below the dense network, or 1%"),
        ("accuracy >= 85", "write 85% for the percentage"),
        ("accuracy >= 1", "write 1% for the percentage, or -1pt"),
        ("accuracy >= -1%", "write -1pt for points beside the dense network"),
        ("accuracy >= -0.01", "write -1pt for points"),
        ("accuracy >= 0.9%", "write 0.9 or 90% for the accuracy itself, -0.9pt"),
        ("accuracy >= 101%", "0% to 100%"),
        ("latency_ms <= -40%", "for 40 % less than dense write 60%"),
        ("latency_ratio <= 60", "60% or 0.6 of dense"),
        ("macs <= 0.5", "for half of dense write macs <= 50%"),
        ("latency_ms <= 0", "above 0"),
        ("macs <= 1e400", "finite"),
        ("size_bytes <= inf", "'inf' is no number with a unit"),
        ("macs 20M", "is no bound; write NAME <= VALUE"),
        ("20M >= macs", "is no bound"),
        ("macs <=", "is no bound"),
        ("", "is no bound"),
    ],
)
def test_what_is_wrong_or_could_mean_two_things_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(repr(text))
    assert "\n" not in str(caught.value)


@given(st.text("acurymslatenizb_<>=%.0123456789 kMB-", max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        bound = parse(text)
    except ConstraintError as error:
        bound, line = None, str(error)
    assert "\n" not in line if bound is None else parse(str(bound)) == bound


def test_every_quantity_has_units() -> None:
    assert UNITS.keys() == OBJECTIVES.keys()


def test_bounds_that_contradict_each_other_are_named() -> None:
    tight = [parse("size_bytes >= 300kB"), parse("size_bytes <= 250kB")]
    with pytest.raises(ConstraintError, match="'size_bytes >= 300kB' and 'size_bytes <= 250kB' contradict"):
        check_compatible(tight)
    check_compatible([parse("size_bytes >= 250kB"), parse("size_bytes <= 250kB"), parse("macs <= 1M")])
    mixed = [parse("macs >= 30M"), parse("macs <= 50%")]
    check_compatible(mixed)
    with pytest.raises(ConstraintError, match="'macs >= 30M' and 'macs <= 50%' contradict"):
        resolve(mixed, DENSE)
    resolve(mixed, {**DENSE, "macs": 70e6})


def test_relative_bounds_are_resolved_beside_the_dense_network_and_the_tightest_holds() -> None:
    asked = (
        "accuracy >= -1pt",
        "accuracy >= 0.8",
        "latency_ms <= 60%",
        "latency_ms <= 2ms",
        "macs <= 50%",
        "macs <= 30M",
    )
    found = {c.name: c for c in resolve([parse(text) for text in asked], DENSE)}
    assert found.keys() == {"accuracy", "latency_ratio", "latency_ms", "macs"}
    assert found["accuracy"].low == pytest.approx(0.89)
    assert found["accuracy"].high == math.inf
    assert found["latency_ratio"] == Constraint(
        "latency_ratio", high=0.6
    )  # measured in pairs, so steadier than ms
    assert found["latency_ms"] == Constraint("latency_ms", high=2.0)
    assert found["macs"].high == pytest.approx(20e6)
    assert {c.name for c in resolve([parse(text) for text in asked], DENSE, EXACT)} == {"macs"}
    with pytest.raises(ConstraintError, match="relative to the dense network, whose accuracy is not known"):
        resolve([parse("accuracy >= -1pt")], {"macs": 1.0})
    assert resolve([], {}) == ()


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_what_meets_a_bound_exactly_is_inside_and_one_image_less_is_not(counts: tuple[int, int, int]) -> None:
    right, fewer, images = counts
    points = -fewer / images
    if fewer == images:
        return
    (limit,) = resolve([Bound("accuracy", "low", points, "points")], {"accuracy": right / images})
    assert limit.violation((right - fewer) / images) == 0
    assert limit.violation((right - fewer - 1) / images) > 0


@given(bounds(), st.floats(1e-3, 1.0))
def test_a_bound_that_is_moved_to_a_value_holds_it_and_little_more(bound: Bound, share: float) -> None:
    dense = {**DENSE, "latency_ms": 3.0, "latency_ratio": 1.0}
    value = share * dense[bound.measured]
    if (bound.name in EXACT and value < 1) or (bound.name == "accuracy" and not 0.01 < value < 1):
        return
    limit = bound.at(value, dense).limit(dense)
    assert limit >= value if bound.side == "high" else limit <= value
    assert limit == pytest.approx(value, rel=0.011, abs=0.011 if bound.relative == "points" else 1e-9)


def test_what_falls_short_is_said_with_what_was_asked() -> None:
    limits = resolve([parse("accuracy >= 85%"), parse("macs <= 50%")], DENSE)
    assert describe_violations({"accuracy": 0.9, "macs": 1e7}, limits) == ""
    assert describe_violations({"accuracy": 0.8, "macs": 3e7}, limits) == (
        "accuracy 0.8 (>= 0.85 was asked), macs 30,000,000 (<= 20,000,000 was asked)"
    )


MIOU, MAE = Metric("miou", "max", scale="share"), Metric("mae", "min", "px", scale="positive")
REWARD = Metric("reward", "max", scale="real")


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("miou >= -1pt", Bound("miou", "low", -0.01, "points")),
        ("mae <= +2%", Bound("mae", "high", 1.02, "ratio")),
        ("mae <= 102% of dense", Bound("mae", "high", 1.02, "ratio")),
        ("mae <= 1.05x", Bound("mae", "high", 1.05, "ratio")),
        ("mae <= +0.3", Bound("mae", "high", 0.3, "difference")),
        ("mae <= 4.5", Bound("mae", "high", 4.5)),
        ("reward >= -3 absolute", Bound("reward", "low", -3.0)),
    ],
)
def test_a_metric_of_a_task_is_bounded_in_its_own_words(text: str, bound: Bound) -> None:
    assert parse(text, any_metric=True) == bound
    assert parse(str(bound), any_metric=True) == bound
    check_metrics([bound], (MIOU, MAE, REWARD))
    with pytest.raises(ConstraintError, match="no quantity is called"):
        parse(text)


def test_bounds_of_metrics_are_relative_to_dense() -> None:
    asked = [parse(text, any_metric=True) for text in ("miou >= -1pt", "mae <= +2%", "reward >= -0.5")]
    low, high, real = resolve(asked, {"miou": 0.6, "mae": 2.0, "reward": -7.0})
    assert (low.low, high.high, real.low) == pytest.approx((0.59, 2.04, -7.5))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("miou <= 0.5", "contradicts the metric, of which more is better: write miou >="),
        ("mae >= +2%", "contradicts the metric, of which less is better: write mae <="),
        ("mae <= +2pt", "points are of a share, which mae is not"),
        ("reward >= 1.05x", "may be zero or negative"),
        ("miou >= 60", "is a share from 0 to 1"),
        ("moiu >= 0.5", "did you mean 'miou'"),
    ],
)
def test_a_bound_that_its_metric_cannot_have_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConstraintError, match=said):
        check_metrics([parse(text, any_metric=True)], (MIOU, MAE, REWARD))


def test_a_percentage_that_could_mean_either_is_refused() -> None:
    with pytest.raises(ConstraintError, match=r"write 0.6 for the value itself, or 60% of dense"):
        parse("miou >= 60%", any_metric=True)

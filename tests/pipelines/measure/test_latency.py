"""The arithmetic of `compare` on a synthetic clock, and every runtime once."""

import gc
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.measure.latency import compare, runtimes

pytestmark = [
    # torch's Inductor, on its first import
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    # torch.export copies its own tree specification
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning"),
]


class Bench:
    """A clock that only moves when a call is made, and a record of who was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds()

        return run


def test_alternates_and_swaps_the_order_from_pair_to_pair() -> None:
    bench = Bench()
    dense, candidate = bench.call("d", lambda: 0.004), bench.call("c", lambda: 0.001)
    latency = compare(dense, candidate, pairs=6, warmup=3, clock=bench.clock)
    assert "".join(bench.calls[:6]) == "dcdcdc"
    assert "".join(bench.calls[-12:]) == "dccd" * 3
    assert bench.calls.count("d") == bench.calls.count("c")
    assert latency.ms == pytest.approx(1.0)
    assert latency.dense_ms == pytest.approx(4.0)
    assert latency.ratio == latency.ratio_low == latency.ratio_high == pytest.approx(0.25)
    assert (latency.pairs, latency.calls_per_sample) == (6, 1)


@given(
    dense=st.floats(1e-6, 5e-2),
    candidate=st.floats(1e-6, 5e-2),
    drift=st.floats(0, 3),
    pairs=st.integers(6, 30),
)
def test_ratio_is_exact_whatever_slows_down_whole_pairs(
    dense: float, candidate: float, drift: float, pairs: int
) -> None:
    bench = Bench()
    slower = itertools.count()

    def slowdown() -> float:  # the same for the two samples of a pair: they make the same number of calls
        return 1.0 + drift * (next(slower) // (2 * calls) % 7)

    calls = max(1, math.ceil(1e-3 / min(dense, candidate)))
    latency = compare(
        bench.call("d", lambda: dense),
        bench.call("c", lambda: candidate),
        pairs=pairs,
        warmup=0,
        clock=bench.clock,
    )
    calls = latency.calls_per_sample
    again = Bench()
    values = {"d": dense, "c": candidate}
    warm = 10  # calibration: five calls of each

    def slowed(name: str) -> Callable[[], float]:
        def seconds() -> float:
            if len(again.calls) <= warm:
                return values[name]
            return values[name] * slowdown()

        return seconds

    disturbed = compare(
        again.call("d", slowed("d")), again.call("c", slowed("c")), pairs=pairs, warmup=0, clock=again.clock
    )
    assert disturbed.calls_per_sample == calls
    assert disturbed.ratio == pytest.approx(candidate / dense, rel=1e-6)
    assert disturbed.ratio_high == pytest.approx(candidate / dense, rel=1e-6)


@given(st.floats(1e-6, 1e-1), st.floats(1e-6, 1e-1))
def test_a_sample_lasts_a_millisecond_with_equal_calls_for_both(dense: float, candidate: float) -> None:
    bench = Bench()
    latency = compare(
        bench.call("d", lambda: dense),
        bench.call("c", lambda: candidate),
        pairs=6,
        warmup=0,
        clock=bench.clock,
    )
    fastest = min(dense, candidate)
    assert latency.calls_per_sample * fastest >= 1e-3 * (1 - 1e-6)
    assert (latency.calls_per_sample - 1) * fastest < 1e-3 * (1 + 1e-6)
    assert bench.calls.count("d") == bench.calls.count("c") == 5 + 6 * latency.calls_per_sample


def test_a_few_interruptions_do_not_move_the_ratio() -> None:
    bench = Bench()
    generator = np.random.default_rng(0)
    latency = compare(
        bench.call("d", lambda: 0.002),
        bench.call("c", lambda: 0.001 + 0.05 * (generator.random() < 0.2)),
        pairs=100,
        warmup=0,
        clock=bench.clock,
    )
    assert latency.ratio == pytest.approx(0.5)
    assert latency.ratio_high == pytest.approx(0.5)


def test_garbage_collection_waits() -> None:
    bench = Bench()
    enabled: list[bool] = []

    def dense() -> None:
        enabled.append(gc.isenabled())
        bench.now += 0.001

    compare(dense, dense, pairs=6, warmup=1, clock=bench.clock)
    assert not any(enabled)
    assert gc.isenabled()


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(PrunefrontError, match="at least 6"):
        compare(lambda: None, lambda: None, pairs=5)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (20, 6), (50, 18), (100, 40)])
def test_interval_takes_the_tabulated_ranks(n: int, rank: int) -> None:
    """Ranks from the usual table for the sign test at 95 % (e.g. Conover, Practical Nonparametric Statistics, A3)."""
    bench = Bench()
    calibration = [1.0] * 5
    seconds = iter([*calibration, *np.random.default_rng(n).permutation(np.arange(1.0, n + 1))])
    latency = compare(
        bench.call("d", lambda: 1.0),
        bench.call("c", lambda: float(next(seconds))),
        pairs=n,
        warmup=0,
        clock=bench.clock,
    )
    assert (latency.ratio_low, latency.ratio_high) == pytest.approx((rank, n + 1 - rank))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(network(), torch.zeros(1, 1, 8, 8), path)
    return path


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "compile" else ()) for n in runtimes]
)
def test_runtime_runs_in_eval_mode_and_leaves_everything_as_it_was(name: str, exported: Path) -> None:
    runtime = runtimes[name]
    lack = runtime.missing()
    assert runtime.summary
    assert "\n" not in runtime.summary
    model, images = network().train(), torch.randn(2, 1, 8, 8)
    if lack is not None:
        with pytest.raises(PrunefrontError, match=name):
            runtime(model, exported, images, 1)
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    call = runtime(model, exported, images, threads + 1)
    for _ in range(3):
        call()
    assert torch.get_num_threads() == threads
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.is_inference_mode_enabled()


def test_an_unavailable_runtime_says_what_is_missing_and_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PrunefrontError, match=r"'no-such-compiler'; possible: .*onnxruntime") as raised:
        runtimes["compile"](network(), None, torch.zeros(1, 1, 8, 8), 1)
    assert "\n" not in str(raised.value)


def test_onnxruntime_without_a_file_and_an_unknown_runtime_are_refused() -> None:
    with pytest.raises(PrunefrontError, match="export"):
        runtimes["onnxruntime"](network(), None, torch.zeros(1, 1, 8, 8), 1)
    with pytest.raises(UnknownName, match="onnxruntime"):
        runtimes["onnx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_cuda_call_ends_when_the_gpu_has_finished() -> None:
    call = runtimes["cuda"](network(), None, torch.randn(2, 1, 8, 8), 1)
    call()
    assert torch.cuda.current_stream().query()


def test_a_real_comparison_tells_a_wide_network_from_a_narrow_one() -> None:
    wide, narrow = (nn.Sequential(nn.Linear(512, width), nn.Linear(width, 512)) for width in (2048, 64))
    images = torch.randn(8, 512)
    calls = [runtimes["eager"](model, None, images, 1) for model in (wide, narrow)]
    latency = compare(*calls, pairs=20, warmup=3)
    assert latency.ratio_low <= latency.ratio <= latency.ratio_high < 1.0

"""The chain of `tests/corpus` over networks of installed timm and torchvision: `make zoo`.

    python -m tests.corpus.zoo [--rows FILE] [--seconds N] [NAME …]

NAME is `timm:…` or `torchvision:…`; without names, those of `NAMES` whose library is installed. Each network has random
weights, the smallest input that it takes, and a process of its own, which --seconds of CPU time end. A row a
network goes to FILE, from which a second call continues. The summary of all rows is printed as Markdown.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.corpus.chain import chain
from tests.corpus.family import Made

TIMM = """
resnet18 resnet26t resnet50 resnetv2_50 resnetv2_50x1_bit wide_resnet50_2 resnext50_32x4d seresnet50
seresnext26t_32x4d resnest14d resnest26d ecaresnet26t skresnet18 gcresnet33ts cspresnet50 cspdarknet53 darknet53
res2net50_14w_8s res2next50 regnetx_002 regnety_002 regnetz_b16 densenet121 dla34 dla46_c dla60_res2net dpn68 vgg11
vgg11_bn vgg16_bn inception_v3 inception_v4 inception_next_atto inception_resnet_v2 xception41 xception65
mobilenetv1_100 mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv4_hybrid_medium mobileone_s0 mnasnet_100 spnasnet_100 fbnetc_100 fbnetv3_b semnasnet_100 efficientnet_b0
efficientnet_lite0 efficientnetv2_rw_t tf_efficientnetv2_b0 tinynet_e mixnet_s lcnet_050 ghostnet_100 ghostnetv2_100
hardcorenas_a hrnet_w18_small repvgg_a0 repghostnet_050 rexnet_100 selecsls42b nfnet_l0 dm_nfnet_f0 nf_resnet50
convnext_atto convnext_tiny convnextv2_atto convmixer_768_32 convit_tiny focalnet_tiny_srf edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 repvit_m0_9 starnet_s1
vanillanet_5 vovnet39a ese_vovnet19b_dw visformer_tiny poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18
gmixer_24_224 gmlp_s16_224 mixer_s32_224 resmlp_12_224 vit_tiny_patch16_224 vit_small_patch32_224
vit_base_patch32_224 vit_relpos_small_patch16_224 vit_small_patch14_dinov2 vit_tiny_r_s16_p8_224
deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224
beitv2_base_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p16_224 xcit_tiny_12_p8_224
crossvit_tiny_240 coat_lite_tiny coatnet_0_224 coatnext_nano_rw_224 maxvit_nano_rw_256 davit_tiny gcvit_xxtiny
hiera_tiny_224 levit_128s levit_conv_128s mambaout_femto mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny
nextvit_small pit_ti_224 pvt_v2_b0 rdnet_tiny sequencer2d_s shvit_s1 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swin_s3_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small
twins_svt_small volo_d1_224 hgnet_tiny hgnetv2_b0 csatv2 bat_resnext26ts botnet26t_256 halonet26t lambda_resnet26t
sebotnet33ts_256 eca_nfnet_l0
"""
TORCHVISION = """
alexnet vgg11 googlenet inception_v3 squeezenet1_0 resnet18 densenet121 mobilenet_v2 mobilenet_v3_small mnasnet0_5
shufflenet_v2_x0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny vit_b_32 swin_t swin_v2_t maxvit_t
fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b swin3d_t
raft_small
"""
NAMES = (*(f"torchvision:{n}" for n in TORCHVISION.split()), *(f"timm:{n}" for n in TIMM.split()))

SIDES = (64, 96, 128, 160, 224, 256, 299)
"""Sides of the images that are tried, the smallest first."""


def made(name: str) -> Made:
    """Returns a network with random weights, in eval mode, and the smallest input of those above that it takes."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    for side in SIDES:
        network = _timm(model, side) if library == "timm" else _torchvision(model)
        if network is None:
            continue
        x: tuple[Any, ...] = (torch.randn(2, 3, side, side),)
        if model in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "swin3d_t"):
            x = (torch.randn(2, 3, 16, side, side),)
        if model.startswith("raft"):
            x = (torch.randn(2, 3, side, side), torch.randn(2, 3, side, side))
        try:
            with torch.no_grad():
                network.eval()(*x)
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError):
            continue
        return network, x
    raise ValueError(f"takes none of the sides {SIDES}")


def _timm(name: str, side: int) -> Any:
    """Returns a network of timm for images of a side; None where it has no such one."""
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=10, img_size=side)
    except (TypeError, AssertionError, RuntimeError, ValueError, ZeroDivisionError):
        pass
    try:
        return timm.create_model(name, pretrained=False, num_classes=10)
    except (AssertionError, RuntimeError, ValueError):
        return None


def _torchvision(name: str) -> Any:
    from torchvision import models

    settings = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **settings)


def row(name: str) -> dict[str, Any]:
    """Runs the chain on one network and returns what is said of it."""
    warnings.simplefilter("ignore")
    said: dict[str, Any] = {"name": name}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        network, inputs = made(name)
        said |= {
            "input": "x".join(map(str, inputs[0].shape[1:])),
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        del network
        with tempfile.TemporaryDirectory() as folder:
            outcome = chain(lambda: made(name), Path(folder), onnx=False)
    except Exception as error:  # the row says what happened  # noqa: BLE001
        line = next(iter(str(error).strip().splitlines()), "")
        return said | {"error": f"{type(error).__name__}: {line[:300]}"}
    why = Counter(f.reason for f in outcome.graph.frozen if f.reason != "reaches the output")
    return said | {
        "groups": len(outcome.graph.groups),
        "reached": outcome.reached,
        "trace_seconds": outcome.seconds,
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "attributes": sorted({a.name for a in outcome.graph.attributes}),
        "frozen": [reason for reason, _ in why.most_common(3)],
        "notes": list(outcome.graph.notes),
    }


def _child(name: str, place: Path) -> None:
    place.write_text(json.dumps(row(name)))


def alone(name: str, seconds: float) -> dict[str, Any]:
    """Runs one network in a process of its own, which ends after `seconds` of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(target=_limited, args=(name, place, seconds))
        process.start()
        process.join()
        if place.exists():
            found: dict[str, Any] = json.loads(place.read_text())
            return found
        return {"name": name, "error": f"ended with {process.exitcode}; it has {seconds:.0f} s of CPU time"}


def _limited(name: str, place: Path, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    _child(name, place)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a page of Markdown."""
    good = [r for r in rows if "error" not in r]
    lines = [
        f"{len(rows)} networks, {len(good)} went through the whole chain; the median of what can be reached is "
        f"{statistics.median(r['reached'] for r in good):.0%} of the MACs, of the CPU time of a trace "
        f"{statistics.median(r['trace_seconds'] for r in good):.1f} s." if good else "none",
        "",
        "| network | input | groups | reached | trace, CPU s | MiB | what stays, or went wrong |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in sorted(rows, key=lambda r: r["name"]):
        why = r.get("error") or "; ".join(reason[:110] for reason in r["frozen"])
        why = why.replace("|", "/")
        if "error" in r:
            lines.append(f"| {r['name']} | {r.get('input', '')} | | | | | {why} |")
        else:
            lines.append(
                f"| {r['name']} | {r['input']} | {r['groups']} | {r['reached']:.0%} | {r['trace_seconds']:.1f} | "
                f"{r['peak_mib']:.0f} | {why} |"
            )
    return "\n".join(lines)


def setting() -> str:
    """Returns when, where and with which versions this runs."""
    versions = []
    for package in ("torch", "torchvision", "timm"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {', '.join(versions)}, {platform.machine()}, {os.cpu_count()} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rows", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    there = {r["name"]: r for line in _lines(given.rows) if (r := json.loads(line))}
    names = given.names or [n for n in NAMES if importlib.util.find_spec(n.partition(":")[0]) is not None]
    if not names:
        raise SystemExit(
            "zoo: neither timm nor torchvision is installed; pip install one that fits your torch"
        )
    for name in names:
        if name in there:
            continue
        start = time.monotonic()
        there[name] = alone(name, given.seconds)
        with given.rows.open("a") as file:
            file.write(json.dumps(there[name]) + "\n")
        print(f"{name}: {there[name].get('error', 'good')} ({time.monotonic() - start:.0f} s)", flush=True)  # noqa: T201 - the summary
    print(f"\n{setting()}\n\n{summary(list(there.values()))}")  # noqa: T201 - the summary


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()

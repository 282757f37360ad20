"""How many bits do weights need? Trained ResNet-20 on real CIFAR-10, words put in afterwards and trained for.

Each row: accuracy on the test images with weights rounded to the word length (batch norms estimated anew), and after
fine-tuning through the rounding (float masters), beside the float network fine-tuned on as many images.

    python benchmarks/word_length.py [--quick] [--json] [--epochs 1] [--images 45000] [--words fixed_point:4,twn:2]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cifar import Cifar

from prunefront.choice import GroupChoice, Quantisation
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan

WORDS = "fixed_point:8,fixed_point:5,fixed_point:4,fixed_point:3,twn:2,bwn:1"


def row(cifar: Cifar, quantiser: str, bits: int, epochs: int, test: int | None) -> dict[str, Any]:
    graph = cifar.network.graph
    # one bit for the first and the last layer is too little; the papers leave them float as well
    layers = graph.layers[1:-1] if bits == 1 else graph.layers
    choices = {layer.name: GroupChoice("l2", bits=bits) for layer in layers} if bits < 32 else {}
    aim = plan(graph, choices, cifar.scores, quantisation=Quantisation(quantiser))
    rounded = cifar.on_test(cifar.evaluator.prune(aim), test)
    start = time.perf_counter()
    trained = cifar.on_test(cifar.train(aim, epochs), test)
    return {
        "quantiser": quantiser if bits < 32 else "float",
        "bits": bits,
        "size_bytes": cost(graph, aim).size_bytes,
        "rounded": round(rounded, 4),
        "trained": round(trained, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 bits, 1,000 training and 1,000 test images")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--words", default=WORDS)
    given = parser.parse_args()
    images, test = (1000, 1000) if given.quick else (given.images, None)
    torch.set_num_threads(2)
    cifar = Cifar(
        {
            "space": {"criteria": ["l2"], "bits": [32, 8]},
            "training": {"learning_rate": 0.01, "epochs": given.epochs},
        },
        images,
    )
    words = [("float", 32)] + [
        (name, int(bits)) for name, bits in (w.split(":") for w in given.words.split(","))
    ]
    if given.quick:
        words = [("float", 32), ("fixed_point", 4)]
    rows = []
    for name, bits in words:
        rows.append(row(cifar, "fixed_point" if bits == 32 else name, bits, given.epochs, test))
        if not given.json:
            r = rows[-1]
            print(
                f"{r['quantiser']:12} {bits:2} bit  {r['size_bytes'] / 1e3:7.1f} kB  rounded {100 * r['rounded']:.2f} %"
                f"  trained {100 * r['trained']:.2f} %  ({r['seconds']} s)",
                flush=True,
            )
    if given.json:
        print(
            json.dumps({"rows": rows, "images": images, "epochs": given.epochs, "torch": torch.__version__})
        )


if __name__ == "__main__":
    main()

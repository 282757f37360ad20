"""Accuracy by bit width of the weights: trained ResNet-20 on real CIFAR-10, quantised and fine-tuned.

Each row: accuracy on the test images with weights rounded to the bit width (batch norms estimated anew), and after
fine-tuning through the rounding (float masters), beside the float network fine-tuned on as many images.

    python -m benchmarks.word_length [--quick] [--json] [--epochs 1] [--images 45000] [--words fixed_point:4,twn:2]
"""

import time
from typing import Any

import torch

from benchmarks.cifar import Cifar, train_plan
from benchmarks.harness import arguments, report, say, table
from prunefront.choice import GroupChoice, Quantisation
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan

WORDS = "fixed_point:8,fixed_point:5,fixed_point:4,fixed_point:3,twn:2,bwn:1"


def measure(cifar: Cifar, quantiser: str, bits: int, epochs: int, test: int | None) -> dict[str, Any]:
    """Returns one row of the table."""
    graph = cifar.graph
    # one bit for the first and the last layer is too little; the papers leave them float as well
    layers = graph.layers[1:-1] if bits == 1 else graph.layers
    choices = {layer.name: GroupChoice("l2", bits=bits) for layer in layers} if bits < 32 else {}
    aim = plan(graph, choices, cifar.scores, quantisation=Quantisation(quantiser))
    rounded = cifar.on_test(cifar.evaluator.prune(aim), test)
    start = time.perf_counter()
    trained = cifar.on_test(train_plan(cifar.evaluator, aim, epochs), test)
    return {
        "quantiser": quantiser if bits < 32 else "float",
        "bits": bits,
        "size_bytes": cost(graph, aim).size_bytes,
        "rounded": round(rounded, 4),
        "trained": round(trained, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = arguments(__doc__, quick="4 bits, 512 training and 500 test images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--words", default=WORDS)
    given = parser.parse_args()
    images, test, asked = (512, 500, "fixed_point:4") if given.quick else (given.images, None, given.words)
    torch.set_num_threads(2)
    sections = {
        "space": {"criteria": ["l2"]},
        "quantisation": {"bits": [32, 8]},
        "training": {"learning_rate": 0.01, "epochs": given.epochs},
    }
    cifar = Cifar(sections, images)
    rows = []
    for word in ("fixed_point:32", *asked.split(",")):
        name, bits = word.split(":")
        rows.append(measure(cifar, name, int(bits), given.epochs, test))
        say(f"{word}: {rows[-1]['seconds']} s")
    cells = [
        (
            r["quantiser"],
            r["bits"],
            f"{r['size_bytes'] / 1e3:.1f} kB",
            f"{100 * r['rounded']:.2f}",
            f"{100 * r['trained']:.2f}",
        )
        for r in rows
    ]
    text = table(("quantiser", "bits", "file", "rounded only, %", "trained, %"), cells)
    found = {"rows": rows, "images": images, "epochs": given.epochs}
    report(given, found, text, ("torch", "prunefront"))


if __name__ == "__main__":
    main()

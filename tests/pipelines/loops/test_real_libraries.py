"""Ready-made loops with real LightningModules and real models of transformers, small enough to train in a second."""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.data import Inputs, Parts, Tensors
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.loops import Budget, LoopError, make_loop
from prunefront.pipelines.loops.running import epochs_of
from prunefront.pipelines.study.run import run
from prunefront.pipelines.tasks import CLASSIFICATION

with warnings.catch_warnings():  # of their imports
    warnings.simplefilter("ignore")
    import lightning
    from transformers import BertConfig, BertForSequenceClassification

EPOCHS, BATCH, COUNT = 2, 16, 70


class Lit(lightning.LightningModule):
    """Logs, asks its trainer, warms up by hand, and notes which of its hooks were called."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first, self.norm, self.last = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 2)
        self.called: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor | None:
        self.called.append(("step", self.current_epoch, self.global_step))
        x, y = batch
        if self.global_step == 3:
            return None
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        self.log_dict({"twice": 2 * loss})
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step(closure=optimizer_closure)

    def on_fit_start(self) -> None:
        self.called.append("fit")

    def on_train_start(self) -> None:
        self.called.append("train")

    def on_train_epoch_start(self) -> None:
        self.called.append("epoch")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.current_epoch == 1 and batch_idx == 3 else None

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.called.append("zero_grad")

    def on_before_backward(self, loss: Tensor) -> None:
        self.called.append("backward")

    def on_after_backward(self) -> None:
        self.called.append("backward done")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.called.append("optimizer")

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.called.append(("zero", epoch, batch_idx))
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.5)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.called.append(("batch done", batch_idx))

    def on_train_epoch_end(self) -> None:
        self.called.append("epoch done")

    def on_train_end(self) -> None:
        self.called.append("train done")

    def on_fit_end(self) -> None:
        self.called.append("fit done")


class InOrder(Tensors):
    """Batches in the order of the data, as a loader without shuffling."""

    def batches(self, size: int, **asked: Any) -> Iterator[Any]:
        return super().batches(size, **{**asked, "rng": None})


def part(count: int, seed: int, kind: type[Tensors] = Tensors) -> Tensors:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return kind(Inputs((x,)), (x[:, 0] * x[:, 1] > 0).long())


def data() -> Parts:
    return Parts(part(COUNT, 0), part(64, 1), part(64, 2), classes=2)


def made(kind: type[Any], **arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**arguments)


def trained(model: nn.Module, parts: Parts, name: str = "lightning") -> None:
    budget = Budget(EPOCHS, COUNT, BATCH, 0.01, 0.0, 0.0, 1.0, seed=0)
    loop = make_loop(name, {})
    running = epochs_of(
        loop, name, model, CLASSIFICATION, data=parts, teacher=model, budget=budget, around=nullcontext
    )
    epoch = next(running, None)
    while epoch is not None:
        try:
            epoch = running.send({"accuracy": 0.5})
        except StopIteration:
            epoch = None


def test_a_lightning_module_trains_as_lightning_itself_does() -> None:
    """The same weights to the last bit, the same hooks in the same order."""
    ours, theirs = made(Lit), made(Lit)
    trained(ours, Parts(part(COUNT, 0, InOrder), part(64, 1), None))
    given = part(COUNT, 0)
    loader = DataLoader(TensorDataset(given.inputs.args[0], given.targets), batch_size=BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(theirs, loader)
    assert ours.called == theirs.called
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert ours._trainer is None
    assert "log" not in vars(ours)


class Asking(Lit):
    def on_train_start(self) -> None:
        self.trainer.callbacks.clear()


class ByHand(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Several(Lit):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([p], lr=0.1) for p in (self.first.weight, self.last.weight)]


class Vector(Lit):
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Asking, r"asks for self\.trainer\.callbacks, which loop 'lightning' does not have; it has: "),
        (ByHand, r"ByHand optimises by hand .* write it as a loop of your own"),
        (Several, r"configure_optimizers returned 2 optimisers"),
        (Vector, r"training_step of Vector returned its loss of shape \(16,\); return a scalar"),
    ],
    ids=["asks for a part of the trainer", "optimises by hand", "two optimisers", "a loss a sample"],
)
def test_what_a_lightning_module_cannot_have_is_one_line(kind: type[Lit], said: str) -> None:
    with pytest.raises(LoopError, match=said) as caught:
        trained(made(kind), data())
    assert "\n" not in str(caught.value)


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
            num_labels=2,
        )
    )


def sentences() -> Parts:
    """Tokens with a mask, as a dict: does token 3 occur more often than token 4?"""

    def sample(count: int, seed: int) -> Tensors:
        tokens = torch.randint(1, 12, (count, 8), generator=torch.Generator().manual_seed(seed))
        more = (tokens == 3).sum(1) > (tokens == 4).sum(1)
        return Tensors(
            Inputs((), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}), more.long()
        )

    return Parts(sample(256, 0), sample(128, 1), sample(128, 2), classes=2)


STUDIES = {
    "lightning": {"model": {"factory": f"{__name__}:Lit"}, "data": {"source": f"{__name__}:data"}},
    "returns_loss": {"model": {"factory": f"{__name__}:bert"}, "data": {"source": f"{__name__}:sentences"}},
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_with_a_real_network_runs_to_its_front(name: str, tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "name": "real",
        "folder": str(tmp_path),
        "dense": {"epochs": 2, "learning_rate": 0.05, "batch_size": 32},
        "space": {"criteria": ["l1"], "calibration_images": 32},
        "search": {"candidates": 2, "searcher": "random"},
        "training": {
            "candidates": 1,
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 0.01,
            "precision": "float32",
            "loop": name,
        },
        "goal": {"objectives": ["accuracy", "macs"]},
        "measure": {"pairs": 10, "warmup": 1},
        **STUDIES[name],
    }
    rows = run(
        parse(plain, source="the test", base=tmp_path), display=Display(Console(quiet=True)), without_ray=True
    )
    assert any(not row.is_dense for row in rows)

"""Writes networks as PyTorch's own exported programs (`model.pt2`), which `torch.export.load` and AOTInductor take.

`torch.export.load` can run code that a .pt2 file holds (read in torch 2.13). It unpickles sample inputs, constants and
weights that are marked so (`torch.load(weights_only=False)`). It passes the text of shape expressions to
`sympy.sympify`, which evaluates it, and `.module()` executes `guards_code`. Compiled libraries may be in the file too.
No option turns that off, and digests only show that a file is the published one. So nothing here loads a fetched file:
weights and plan make the network, from which `export` writes the file again. A file of `export` holds no pickle.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunefront.atomic import write_whole
from prunefront.errors import NotTraceable, PrunefrontError
from prunefront.pipelines.formats.example import (
    Example,
    arguments,
    by_keyword,
    forward,
    free_axes,
    mapped,
    rows,
    traced_with,
)
from prunefront.pipelines.formats.same_outputs import batch_sizes, largest_difference
from prunefront.text import one_line


def export(model: nn.Module, example: Example, path: Path) -> None:
    """Writes `model` in eval mode, on the CPU, as one exported program; axis 0 of its input is free, from 1.

    example: one input batch (n, ...), any n; only its shape and type matter. The model is left as it was. The same
    network gives the same bytes (with one version of torch). They name no path or source line of this machine, but the
    modules' classes. Raises NotTraceable where torch cannot export the model with a free batch size.
    """
    network = copy.deepcopy(model).cpu().eval()
    args, kwargs = by_keyword(network, traced_with(example))
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(
                network,
                args,
                kwargs or None,
                dynamic_shapes=free_axes(network, args, kwargs, torch.export.Dim("batch", min=1)),
            )
        except Exception as error:  # any model may fail in any way: its cause is reported
            raise NotTraceable(
                f"{type(model).__name__} cannot be exported as a .pt2 file with a free batch size, write its forward "
                f"for any batch, e.g. x.flatten(1): {type(error).__name__}: {one_line(error, 300)}"
            ) from error
    _strip(program)
    written = BytesIO()  # torch.export.save puts the name of a file into it
    with _quiet():
        torch.export.save(program, written)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(written.getvalue()))


def check(model: nn.Module, path: Path, examples: Example, tolerance: float = 1e-4) -> float:
    """Returns the largest absolute difference of the file's outputs from those of `model`, over batches of 1, 2, n.

    path: file that `export` wrote in this process, never one from elsewhere, which could run code (see above).
    examples: (n, ...). Raises PrunefrontError where the difference exceeds `tolerance` times the largest output (or
    times 1, if all outputs are smaller), where a shape differs, or the file cannot be loaded or run.
    """
    network = copy.deepcopy(model).cpu().eval()
    worst = 0.0
    with torch.no_grad(), _quiet():
        loaded = _module(path)
        for size in batch_sizes(rows(examples)):
            batch = mapped(lambda t, size=size: (t[:size] if t.ndim else t).cpu(), examples)
            args, kwargs = by_keyword(network, arguments(batch))
            try:
                actual = pytree.tree_leaves(loaded(*args, **kwargs))
            except (RuntimeError, AssertionError) as error:
                raise PrunefrontError(f"{path} fails on a batch of {size}: {one_line(error, 300)}") from None
            expected = pytree.tree_leaves(forward(network, batch))
            wanted, given = ([t.float().numpy() for t in leaves] for leaves in (expected, actual))
            worst = max(worst, largest_difference(path, "the network", wanted, given, tolerance))
    return worst


def _module(path: Path) -> nn.Module:
    """Returns the module in a file of ours. Raises PrunefrontError for a damaged one."""
    try:
        return torch.export.load(path).module()
    except Exception as error:  # a damaged archive fails in many ways, KeyError and AssertionError among them
        raise PrunefrontError(
            f"{path} cannot be loaded: {type(error).__name__}: {one_line(error, 300)}; export it again"
        ) from error


def _strip(program: torch.export.ExportedProgram) -> None:
    """Removes traces of this machine, and the sample inputs, which would be the file's only pickle."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the text that torch prints and logs about a failed export: the error says it in one line."""
    loggers = [logging.getLogger(f"torch.{name}") for name in ("fx.experimental.symbolic_shapes", "export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            # torch copies its own tree specification
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

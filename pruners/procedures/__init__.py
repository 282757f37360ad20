"""Training procedures: ways to take a network from dense to its plan. Modules here are found by themselves.

A procedure is a generator: it changes the network (`run.cut`), yields a `Phase` of training, and goes on when that is
over. All of them run in the same loop (`procedures.loop`) and spend the same number of steps.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures.hook import Hook
from prunefront.pruners.procedures.run import Run
from prunefront.registry import Registry, summary_of


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training between two changes of the network.

    steps: mini-batches. rate: factor of the learning rate at a share in [0, 1] of the phase; None = the recipe's own
    schedule. restart: that schedule runs over this phase alone, not over the whole run. hooks: in the order in which
    they are called. trains: says for a parameter's name whether it is trained; None = all are.
    """

    steps: int
    rate: Callable[[float], float] | None = None
    restart: bool = False
    hooks: tuple[Hook, ...] = ()
    trains: Callable[[str, Tensor], bool] | None = None


Phases = Callable[..., Iterator[Phase]]
"""Function (run, **options) -> phases, whose steps add up to `run.steps`."""


@dataclass(frozen=True, slots=True)
class Procedure:
    """A training procedure. options: name -> default, as in the function's signature.

    over: units that it prunes in addition to the plan: none (`channels`), or single weights of the layers that are
    left. choose: when to take it, in a few words. paper: authors, year and arXiv number. summary: one line, for lists.
    resumes: its actions follow from the run's counts and steps alone, so that an interrupted training goes on from a
    snapshot; others start again.
    """

    name: str
    phases: Phases
    summary: str
    choose: str
    paper: str
    options: Mapping[str, Any] = field(default_factory=dict)
    over: Literal["channels", "weights"] = "channels"
    resumes: bool = False

    def __call__(self, run: Run, **options: Any) -> Iterator[Phase]:
        """Starts the procedure. Raises PrunefrontError for an option that it does not have."""
        self.check(options)
        return self.phases(run, **options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises PrunefrontError for an unknown option, or one whose type is not that of its default."""
        unknown = sorted(options.keys() - self.options.keys())
        if unknown:
            raise PrunefrontError(
                f"procedure {self.name!r} has no option {unknown[0]!r}; "
                f"it has: {', '.join(f'{k} = {v!r}' for k, v in self.options.items()) or 'none'}"
            )
        for name, value in options.items():
            default = self.options[name]
            alike = isinstance(value, type(default)) and not isinstance(value, bool)
            whole = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
            if not (alike or whole or (isinstance(default, bool) and isinstance(value, bool))):
                raise PrunefrontError(
                    f"option {name!r} of procedure {self.name!r} is {value!r}; give a {type(default).__name__} "
                    f"such as {default!r}"
                )


procedures: Registry[Procedure] = Registry("procedure")


def procedure(
    name: str,
    *,
    choose: str = "",
    paper: str = "",
    over: Literal["channels", "weights"] = "channels",
    resumes: bool = False,
) -> Callable[[Phases], Procedure]:
    """Returns a decorator that registers a procedure; its keyword arguments are the options, each with a default.

    Raises ValueError for a name already taken, an option without default, or a function without a docstring.
    """

    def add(phases: Phases) -> Procedure:
        summary = summary_of(phases, "procedure", name)
        _, *others = inspect.signature(phases).parameters.values()
        if bare := [p.name for p in others if p.default is p.empty]:
            raise ValueError(f"option {bare[0]!r} of procedure {name!r} has no default")
        options = {p.name: p.default for p in others}
        found = Procedure(name, phases, summary, choose, paper, options, over, resumes)
        return procedures.register(name)(found)

    return add


for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

"""Samples that networks newly get wrong beside the dense one, with pictures of some: a file that the page shows."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from prunefront.pipelines.journal.journal import read_record
from prunefront.pipelines.journal.layout import MISTAKES
from prunefront.pipelines.journal.typed_json import Printable

Key = Annotated[Printable, Field(max_length=300)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+={0,2}$", max_length=50_000)]
Place = Annotated[str, Field(pattern=r"^\d{1,12}$")]


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True))
class Changed:
    """Samples that a network judges otherwise than the dense one.

    wrong, right: how many the dense network has right and this one wrong, and the other way round. shown: places of
    some of the newly wrong ones, in the validation data.
    """

    wrong: Count
    right: Count
    shown: list[Count]


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True))
class Mistakes:
    """The changed samples of every network by its key, of so many validation samples. pictures: place -> PNG."""

    samples: Count
    networks: dict[Key, Changed]
    pictures: dict[Place, Picture] = field(default_factory=dict)


def read_mistakes(folder: Path) -> Mistakes | None:
    """Returns what a study's folder keeps; None where it keeps none. Raises StudyFolderError for another file."""
    return read_record(folder / MISTAKES, Mistakes) if (folder / MISTAKES).exists() else None


def of_page(found: Mistakes | None) -> dict[str, Any] | None:
    """Returns what the page takes."""
    if found is None:
        return None
    networks: Mapping[str, Changed] = found.networks
    return {
        "samples": found.samples,
        "networks": {
            key: {"wrong": one.wrong, "right": one.right, "shown": list(one.shown)}
            for key, one in networks.items()
        },
        "pictures": dict(found.pictures),
    }

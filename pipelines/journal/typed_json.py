"""JSON from a place that is not trusted, read as the dataclass or model whose annotations say what is let through."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, TypeAdapter, ValidationError

from prunefront.strict_json import loads

T = TypeVar("T")


def parse(kind: type[T], text: str | bytes, *, extra: Literal["forbid", "ignore"] = "forbid") -> T:
    """Returns the document as a `kind`; no value is converted to the type that it should have.

    extra: what happens to entries that `kind` does not have. Raises ValueError, in one line that names the first wrong
    entry, for anything else.
    """
    loads(text)  # refuses what pydantic lets through: a key twice, NaN
    try:
        return TypeAdapter(kind).validate_json(text, strict=True, extra=extra)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """Returns the place of the first wrong entry, and what is wrong with it, in a few words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(f"{part!s:.100}" for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    got = first["input"]
    shown = f", got {got!r:.80}" if where and isinstance(got, str | int | float | None) else ""
    return f"{where}: {said}{shown}" if where else said


def _shown(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds characters that cannot be printed")
    return text


Printable = Annotated[str, AfterValidator(_shown)]
"""Text that a terminal shows as it is."""

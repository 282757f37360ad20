"""Pieces of messages: one line, the first line, the name that was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.text import LONGEST, did_you_mean, first_line, one_line


@given(st.text())
def test_an_error_is_one_line_for_a_terminal(text: str) -> None:
    said = str(PrunefrontError(text))
    assert said.isprintable()
    assert one_line(said) == said
    assert text.isprintable() <= (said == " ".join(text.split()))


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    said = str(PrunefrontError("begin " + "x" * 10**6 + " end"))
    assert len(said) <= LONGEST
    assert said.startswith("begin x")
    assert said.endswith("x end")


def test_an_error_without_a_message_is_its_type() -> None:
    assert one_line(ValueError()) == first_line(ValueError("\n ")) == "ValueError"
    assert one_line(ValueError("a\n  b"), 300) == "a b"
    assert first_line(ValueError("\n  a\n  b")) == "a"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("tailor", "taylor"), ("Taylor", "taylor"), ("KB", "kB"), ("size", "size_bytes"), ("zzz", "")],
)
def test_the_nearest_name_is_meant(name: str, meant: str) -> None:
    known = ("taylor", "size_bytes", "kB")
    assert did_you_mean(name, known) == (f"did you mean {meant!r}? " if meant else "")

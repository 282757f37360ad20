"""JSON as we write it comes back; what only json.loads takes is a ValueError."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.strict_json import MOST_VALUES, loads

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
documents = st.recursive(scalars | texts, lambda v: st.lists(v) | st.dictionaries(texts, v), max_leaves=20)


@given(documents, st.booleans())
def test_what_we_write_comes_back(document: Any, ascii: bool) -> None:
    text = json.dumps(document, allow_nan=False, ensure_ascii=ascii)
    assert loads(text) == loads(text.encode()) == document


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "[Infinity]", "1e400", "-1e999", str(2**63), "9" * 5000, '{"a": 1, "a": 1}', "", "1 2",
        '"\\ud800"', '{"\\uDFFF": 0}', b"\xff", b'"\xed\xa0\x80"', '{"a": 1}'.encode("utf-16"), b"\xef\xbb\xbf1",
        "[" * 100_000, '{"a":' * 100_000,
    ],
)  # fmt: skip
def test_what_we_never_write_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is for those who name the file
        loads(text)


def test_a_flood_of_values_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="more than"):
        loads("[" + "0," * MOST_VALUES + "0]")

"""The page of a study, report.html: one file that needs no network and asks for none.

Its frame, style and script lie beside this module. All that a study says goes into it as JSON, which the script shows
as text; the page's policy lets no other script run, and nothing be loaded.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunefront.atomic import write_whole
from prunefront.reading import read_text
from prunefront.text import plain

HERE = Path(__file__).parent

MARKUP = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""Characters of JSON, where they stand in texts alone, that end a script or begin a comment in HTML."""


def page(content: Mapping[str, Any]) -> str:
    """Returns the page of what `report.document` returns."""
    style, script = (read_text(HERE / name) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(_printable(content), allow_nan=False, separators=(",", ":"))
    filled = {
        "policy": html.escape(policy),
        "title": html.escape(plain(content["study"])),
        "said": html.escape(plain("\n".join(content["said"]))),
        "style": style,
        "script": script,
        "data": data.translate(MARKUP),
    }
    # in one pass: what a study says may look like a place to fill in
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], read_text(HERE / "report.html"))


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Replaces a page as a whole: what somebody put in its place, such as a link, is not followed. Raises OSError."""
    text = page(content)
    write_whole(path, lambda file: file.write(text.encode()))


def _digest(text: str) -> str:
    """Returns what a policy names an inline style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _printable(data: Any) -> Any:
    """Returns JSON whose texts hold nothing that turns the direction of writing, or that no reader sees.

    A number that JSON does not know, which only a journal from elsewhere leads to, is null.
    """
    if isinstance(data, str):
        return plain(data)
    if isinstance(data, Mapping):
        return {plain(key): _printable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_printable(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

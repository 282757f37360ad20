"""`make audit` never calls clean what it did not look up."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location("audit", Path(__file__).parents[1] / "scripts" / "audit.py")
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

CLEAN = {"name": "ray", "version": "2.60.0", "vulns": []}
HOLE = {"name": "Pillow", "version": "11.0", "vulns": [{"id": "CVE-1", "fix_versions": ["11.1"]}]}
SKIPPED = {"name": "ray", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([CLEAN], 0, "no known holes in 1 packages"),
        ([CLEAN, HOLE], 1, "Pillow 11.0: CVE-1, mended in 11.1"),
        ([SKIPPED], 3, "NOT CHECKED"),
        ([SKIPPED, HOLE], 1, "CVE-1"),
        ([], 3, "NOT CHECKED"),
    ],
)
def test_the_exit_code_says_whether_it_was_looked_up(
    packages: list[dict[str, Any]], code: int, says: str
) -> None:
    found, said = audit.judged({"dependencies": packages}, ["ray"])
    assert found == code
    assert says in said

"""Every benchmark has --quick, --json and --help from the harness, and the harness keeps its word."""

import argparse
import ast
import json
from pathlib import Path

import pytest

from benchmarks import harness

FOLDER = Path(harness.__file__).parent
TREES = {path.stem: ast.parse(path.read_text()) for path in sorted(FOLDER.glob("*.py"))}
SCRIPTS = {name: tree for name, tree in TREES.items() if "def main()" in ast.unparse(tree)}
"""Benchmarks by name, without the modules that they share."""


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def test_the_scripts_were_read() -> None:
    assert len(SCRIPTS) > 15


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_uses_the_harness(name: str) -> None:
    """The sources are read, not run: most import torch, which takes seconds."""
    tree = SCRIPTS[name]
    (parser,) = calls(tree, "arguments")
    assert ast.unparse(parser.args[0]) == "__doc__"
    assert [k.arg for k in parser.keywords] == ["quick"]
    assert "parse_args()" in ast.unparse(tree)
    (report,) = calls(tree, "report")
    assert ast.unparse(report.args[0]) == "given"
    assert not calls(tree, "print"), "stdout has the report alone; progress is said"
    assert f"python -m benchmarks.{name} [--quick] [--json]" in (ast.get_docstring(tree) or "")
    assert ast.unparse(tree.body[-1]).startswith("if __name__ == '__main__':\n    main()")


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_help_text_breaks_help(name: str) -> None:
    """argparse formats help texts with %, so a bare one would raise at --help."""
    texts = [
        k.value
        for call in calls(SCRIPTS[name], "parser.add_argument")
        for k in call.keywords
        if k.arg == "help"
    ]
    texts += [k.value for k in calls(SCRIPTS[name], "arguments")[0].keywords]
    for text in texts:
        constants = [
            n.value for n in ast.walk(text) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        assert not any("%" in constant for constant in constants)


def parsed(*arguments: str) -> argparse.Namespace:
    return harness.arguments("Cost of nothing.", quick="less of it").parse_args(arguments)


def test_help_says_what_quick_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "Cost of nothing." in said
    assert "--quick     less of it" in said
    assert "--json" in said


def test_the_report_is_one_json_object_or_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    harness.report(parsed("--json"), {"figure": 1.5}, "a table", ["numpy"])
    found = json.loads(capsys.readouterr().out)
    assert found["figure"] == 1.5
    assert {"machine", "cores", "python"} < found["where"].keys()
    assert list(found["where"]["versions"]) == ["numpy"]
    harness.report(parsed(), {"figure": 1.5}, "a table", ["numpy"])
    assert capsys.readouterr().out.startswith("a table\n\n")


def test_unknown_names_end_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    parser = harness.arguments(None, quick="")
    assert harness.choose(parser, None, "abc", "ab") == ["a", "b"]
    assert harness.choose(parser, "c;a", "abc", "ab", separator=";") == ["c", "a"]
    with pytest.raises(SystemExit):
        harness.choose(parser, "a,d", "abc", "ab")
    assert "'d' is unknown; choose among: a, b, c" in capsys.readouterr().err


def test_pairs_alternate_after_a_warm_up() -> None:
    order: list[str] = []
    found = harness.alternate(lambda: order.append("mine"), lambda: order.append("other"), pairs=3)
    assert order == ["other", "mine", "mine", "other", "other", "mine", "mine", "other"]
    assert found["pairs"] == 3
    assert found["from"] == found["low"] <= found["ratio"] <= found["high"] == found["to"]


def test_tables_are_aligned() -> None:
    assert harness.table(("name", "n"), [("a", 1), ("longer", 22)]).splitlines() == [
        "| name   |  n |",
        "| ------ | -- |",
        "| a      |  1 |",
        "| longer | 22 |",
    ]
    assert harness.plus_minus([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert harness.plus_minus([0.5], 0, scale=100) == "50"
    assert harness.plus_minus([], 1) == "–"

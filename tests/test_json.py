"""JSON that everstep writes is what the standard calls JSON: no NaN, no infinities."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest

import everstep
from everstep.storage.reading import json_text, parse_json

PACKAGE = Path(everstep.__file__).parent


def careless(node: ast.AST) -> bool:
    """Whether it is a call of `json.dump` or `json.dumps` that may write what is no JSON."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("dump", "dumps")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "json"
        and not any(k.arg == "allow_nan" and not getattr(k.value, "value", True) for k in node.keywords)
    )


def writers() -> list[str]:
    """Where such calls are."""
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "process_group.py"  # what processes tell one another is no file, and may hold NaN
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if careless(node)
    ]


def test_every_writer_refuses_what_is_no_json() -> None:
    assert writers() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null(bad: float) -> None:
    value = {"a": bad, "b": [1.5, bad, {"c": (bad, "NaN")}], bad: 1, "d": None, "e": True}
    text = json_text(value, indent=1)
    assert parse_json(text) == {
        "a": None, "b": [1.5, None, {"c": [None, "NaN"]}], "null": 1, "d": None, "e": True
    }  # fmt: skip


def test_other_values_are_written_as_json_writes_them() -> None:
    value = {"a": [1, 2.5, "ü\n", None, True, {}], "b": {"c": []}, "d": 1e300}
    for options in ({}, {"indent": 2}, {"ensure_ascii": False}):
        assert json_text(value, **options) == json.dumps(value, **options)

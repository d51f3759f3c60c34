"""The floors of the house: imports go only downward, and the package stays cheap to open."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import everstep

PACKAGE = Path(everstep.__file__).parent
FLOORS = {
    "errors": 0,
    "hooks": 0,
    "processor": 0,
    "processes": 0,
    "reading": 0,
    "state": 0,
    "cell": 1,
    "equation": 1,
    "scanning": 1,
    "cells": 2,
    "wirings": 3,
    "heads": 3,
    "data": 3,
    "measures": 3,
    "sections": 3,
    "learn": 4,
    "decode": 4,
    "rivals": 4,
    "look": 5,
    "networks": 6,
    "runs": 7,
    "tasks": 8,
    "lab": 9,
    "cli": 10,
}
OUTSIDE = {"__init__", "__main__"}


def room(module: str) -> str:
    """`everstep.data.text` → `data`."""
    return module.split(".")[1]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found += [f"everstep.{a.name}" for a in node.names] if module == "everstep" else [module]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith("everstep.")]


def test_imports_go_only_downward() -> None:
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if here in OUTSIDE:
            continue
        assert here in FLOORS, f"{path}: give the new room {here!r} a floor"
        for name in imports(path):
            if room(name) == "__version__":
                continue
            there = room(name)
            checked += 1
            assert there in FLOORS, f"{path} imports {name}"
            same = there == here
            # one floor, and the only rooms that need each other: a cell called on a sequence scans itself
            core = {here, there} <= {"cell", "equation", "scanning"}
            assert same or core or FLOORS[there] < FLOORS[here], f"{path} (floor {FLOORS[here]}) imports {name}"
    assert checked > 100


def test_no_pickle_anywhere() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "dill", "joblib", "shelve"} & set(names), path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "torch.save"), path


def test_help_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, everstep, everstep.cli.app; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves_and_has_a_page() -> None:
    for name in everstep.__all__:
        value = getattr(everstep, name)
        assert name == "__version__" or (value.__doc__ and len(value.__doc__) > 20), name


def test_a_cell_is_called_before_anything_else() -> None:
    code = "import torch; from everstep.cells import LSTM; print(tuple(LSTM(2, 3)(torch.zeros(1, 4, 2))[0].shape))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "(1, 4, 3)\n"

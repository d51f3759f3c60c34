"""The floors of the house: imports go only downward, and the package stays cheap to open."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import everstep

PACKAGE = Path(everstep.__file__).parent
FLOORS = (
    ("cancellation", "errors", "hooks", "no_steps", "parameters", "processes", "state"),
    ("abstract", "arguments", "sections", "storage"),
    ("native", "tracing"),
    ("backends",),
    ("cell",),
    ("equation", "explanation", "stream"),
    ("cells", "memory", "trees"),
    ("data", "heads", "measures", "wirings"),
    ("decode", "learn", "rivals"),
    ("look",),
    ("networks",),
    ("runs",),
    ("lab", "ship", "tasks"),
    ("cli",),
)
"""The rooms of the package from the ground up; `docs/architecture.md` says what each is for."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE = {"__init__", "__main__"}


def module_of(path: Path) -> str:
    """`…/everstep/data/text/text_files.py` → `everstep.data.text.text_files`."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = ("everstep", "tests", "benchmarks", "examples")
SOURCES = [path for folder in FOLDERS for path in sorted((PACKAGE.parent / folder).rglob("*.py"))]


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file."""
    return ast.parse(path.read_text("utf-8"))


def room(module: str) -> str:
    """`everstep.data.text` → `data`."""
    return module.split(".")[1]


@cache
def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere in it, also within functions and for types alone."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{a.name}" if f"{module}.{a.name}" in FILES else module for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("everstep.")}


def test_imports_go_only_downward() -> None:
    checked = 0
    for module, path in FILES.items():
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if here in OUTSIDE:
            continue
        assert here in LEVEL, f"{path}: give the new room {here!r} a floor"
        for name in imports(path):
            there = room(name)
            checked += 1
            assert there in LEVEL, f"{path} imports {name}"
            below = LEVEL[there] < LEVEL[here]
            assert there == here or below, f"{module} (floor {LEVEL[here]}) imports {name} (floor {LEVEL[there]})"
    assert checked > 500


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A path along arrows that ends where it began; empty if there is none."""
    done: set[str] = set()
    for start in arrows:
        path: list[str] = []
        left = [iter([start])]
        while left:
            name = next(left[-1], None)
            if name is None:
                left.pop()
                if path:
                    done.add(path.pop())
            elif name in path:
                return [*path[path.index(name) :], name]
            elif name not in done:
                path.append(name)
                left.append(iter(sorted(arrows.get(name, ()))))
    return []


def test_no_files_need_each_other() -> None:
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == ["b", "c", "d", "b"]
    arrows = {module: imports(path) - {module} for module, path in FILES.items()}
    assert sum(map(len, arrows.values())) > 1000
    assert circle(arrows) == []


def test_no_two_files_or_public_classes_share_a_name() -> None:
    names: dict[str, list[str]] = {}
    for module, path in FILES.items():
        classes = [node.name for node in parsed(path).body if isinstance(node, ast.ClassDef)]
        stem = [] if path.stem in OUTSIDE else [f"{path.stem}.py"]
        for name in [*stem, *(f"class {name}" for name in classes if not name.startswith("_"))]:
            names.setdefault(name, []).append(module)
    assert len(names) > 500
    assert not {name: where for name, where in names.items() if len(where) > 1}


def functions(node: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions below a node; methods by the names of their classes, too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{owner}{child.name}", child
            yield from functions(child)
        elif not isinstance(child, ast.expr):
            yield from functions(child, f"{child.name}." if isinstance(child, ast.ClassDef) else owner)


def bodies_of_long_functions() -> dict[str, list[int]]:
    """The functions of more than 50 lines, and the lines of their bodies without docstring."""
    found: dict[str, list[int]] = {}
    for path in SOURCES:
        for name, node in functions(parsed(path)):
            if node.end_lineno is not None and node.end_lineno - node.lineno >= 50:
                first = node.body[ast.get_docstring(node) is not None]
                found.setdefault(name, []).append(node.end_lineno - first.lineno + 1)
    return found


def test_what_is_over_the_lines_has_a_reason() -> None:
    told = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8").partition("## Over the lines")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines() if "`" in line]
    functions = [(re.findall(r"`([\w.]+)`", row[0]), row[1], row[2]) for row in rows if len(row) == 3]
    long = bodies_of_long_functions()
    how = "shorten them, or give them a row with a reason"
    named = {name for names, _, _ in functions for name in names}
    assert named == long.keys(), f"docs/architecture.md, Over the lines: {named ^ long.keys()}; {how}"
    for names, bounds, why in functions:
        least, most = map(int, bounds.split(" to "))
        lines = [body for name in names for body in long[name]]
        assert min(lines) == pytest.approx(least, abs=5), (names, lines)
        assert max(lines) == pytest.approx(most, abs=5), (names, lines)
        assert len(why) > 20
    files = {name for row in rows if len(row) == 2 for name in re.findall(r"`([\w.]+)`", row[0])}
    there = {path.name for path in SOURCES if len(path.read_text("utf-8").splitlines()) > 400}
    assert files == there, f"docs/architecture.md, Over the lines: {files ^ there}; {how}"


def test_no_pickle_anywhere() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "dill", "joblib", "shelve"} & set(names), path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "torch.save"), path


SLOW = ("pandas", "polars", "scipy.", "sklearn", "statsmodels")
"""What takes a tenth of a second or more to import; `import scipy` alone does not."""


def test_what_few_need_and_takes_long_is_imported_where_it_is_needed() -> None:
    found = []
    for path in SOURCES:
        folder, *_ = path.relative_to(PACKAGE.parent).parts
        for node in parsed(path).body if folder in ("everstep", "tests") else []:
            if isinstance(node, ast.Import | ast.ImportFrom):
                inside = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                found += [f"{path}: {inside}{a.name}" for a in node.names if f"{inside}{a.name}".startswith(SLOW)]
    assert found == []


def test_help_and_recipes_import_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, everstep, everstep.cli.app\n"
        "try: everstep.cli.app.app(['recipes', 'show', 'text-chars'])\n"
        "except SystemExit as end: print([m for m in ('torch', 'matplotlib') if m in sys.modules], end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_every_public_name_resolves_and_has_a_page() -> None:
    for name in everstep.__all__:
        value = getattr(everstep, name)
        assert name == "__version__" or (value.__doc__ and len(value.__doc__) > 20), name


def test_a_cell_is_called_before_anything_else() -> None:
    code = "import torch; from everstep.cells import LSTM; print(tuple(LSTM(2, 3)(torch.zeros(1, 4, 2))[0].shape))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "(1, 4, 3)\n"

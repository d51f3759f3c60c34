"""Every example in a docstring, in the README and in the laboratory's page runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import everstep
from everstep.native import toolchain

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(everstep.__path__, "everstep.")
    if "__main__" not in info.name and not info.name.startswith("everstep.cli")
)
COMPILED = {"everstep.explanation", "everstep.stream", "everstep.wirings.accelerate"}
"""Those whose examples are about the compiled engine."""
WHOLE = {"everstep.data.text.corpus", "everstep.data.text.text_files"}
"""Those whose examples read a bundled text to its end."""


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("own_cache", "quick")
def test_docstring_examples(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name not in COMPILED:
        request.getfixturevalue("uncompiled")
    if name not in WHOLE:
        request.getfixturevalue("little_data")
    module = importlib.import_module(name)
    import torch

    names = {"torch": torch, "es": everstep, "getfixture": lambda _: tmp_path}
    found = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


@pytest.mark.parametrize(
    "page", ["README.md", "docs/laboratory.md", "docs/trees.md", "docs/export.md", "docs/serving.md"]
)
@pytest.mark.usefixtures("own_cache", "quick", "little_data")
def test_python_on_pages(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block.replace("train.max_minutes=1", "train.max_steps=2"), page, "exec"), {})


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_lines_are_short_but_for_tables(page: Path) -> None:
    lines = enumerate(page.read_text("utf-8").splitlines(), 1)
    assert not [number for number, line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")
def test_page_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    cells_page = importlib.import_module("cells_page")
    written = cells_page.PAGE.read_text("utf-8")
    there = re.findall(r"^## (\w+)$", written, re.M)  # a new cell comes onto the page at a release
    assert len(there) >= 67
    assert cells_page.page(there) == written, "docs/cells.md is not of this code: python benchmarks/cells_page.py"

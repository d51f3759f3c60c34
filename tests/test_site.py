"""The documentation site: it builds without a warning, and every public name is on a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import everstep

DOCS = Path(__file__).parents[1] / "docs"
REASON = "the documentation needs pip install 'everstep[docs]'"


def test_every_page_is_named_once_in_a_table_of_contents() -> None:
    named = [
        (page.parent / name).resolve().with_suffix(".md")
        for page in DOCS.rglob("*.md")
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text("utf-8"), re.S)
        for name in block.splitlines()
        if name and not name.startswith((":", "["))
    ]
    results = {*(DOCS / "results").glob("[a-z]*.md")}  # by a pattern
    assert sorted(named) == sorted({*DOCS.rglob("*.md")} - results - {DOCS / "index.md"})


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=REASON)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(site)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    pages = "".join(page.read_text("utf-8") for page in (site / "api").glob("*.html"))
    assert {f"everstep.{name}" for name in everstep._HOME} <= {*re.findall(r'id="(everstep\.\w+)"', pages)}
    assert (site / "searchindex.js").is_file()
    foreign = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', pages)
    assert not foreign, f"pages load from elsewhere, so that they do not work offline: {foreign}"

"""The commands and the Python of the tutorials run, and of the pages for those who come from another library."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everstep.cli.app import app

ROOT = Path(__file__).parents[1] / "docs"
FOLDERS = (ROOT / "tutorials", ROOT / "coming_from")
PAGES = [ROOT / "start.md", *sorted(page for one in FOLDERS for page in one.glob("*.md") if page.stem != "index")]
SHORT = ["train.max_steps=2", "train.max_minutes=null", "train.max_epochs=null"]
TINY = ["model.hidden_size=8", "model.embedding_size=8"]
QUICK = {
    "shakespeare-minute": TINY,
    "text-words": TINY,
    "translate-minute": [*TINY, "decode.beam_width=2", "decode.max_length=3", "data.test=null"],
    "motion-minute": ["model.hidden_size=8"],
    "music-minute": ["model.hidden_size=8"],
    "music-own": ["model.hidden_size=8"],
    "questions-minute": ["model.embedding_size=8"],
    "questions-own": ["model.embedding_size=8"],
    "strokes-minute": ["model.hidden_size=8"],
    "strokes-own": ["model.hidden_size=8"],
    "cartpole-minute": ["model.hidden_size=8", "data.validated=2", "data.scored=2"],
    "control-own": ["model.hidden_size=8", "data.validated=2", "data.scored=2"],
    "speech-minute": ["model.hidden_size=8"],
    "speech-own": ["model.hidden_size=8"],
    "text-chars": TINY,
}
NEEDS = {"forecast": "polars", "translate": "sacrebleu", "control": "gymnasium"}
MOST_LINES = 60


def typed(line: str) -> str | None:
    """Run a command line as a shell would: `everstep …`, `printf … > FILE`, or `printf … | everstep …`."""
    words = shlex.split(line, comments=True)
    given = ""
    if words[0] == "printf":
        given = words[1].encode().decode("unicode_escape")
        if words[2] == ">":
            Path(words[3]).write_text(given, "utf-8")
            return None
        assert words[2] == "|", line
        words = words[3:]
    if words[0] != "everstep":
        return None
    if words[1] == "train" and words[2] != "kneser-ney":
        words += [*SHORT, *QUICK.get(words[2], [])]
    done = CliRunner().invoke(app, words[1:], input=given)
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    return done.output


def shortened(text: str) -> str:
    """Python whose trainings take two steps, of a small model where the recipe has a large one."""
    recipe = re.search(r'train\("([\w-]+)"', text)
    settings = [*SHORT, *QUICK.get(recipe[1] if recipe else "", [])]
    return text.replace('"train.max_minutes=1"', ", ".join(f'"{setting}"' for setting in settings))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
@pytest.mark.usefixtures("own_cache", "uncompiled", "little_data", "unrendered")
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS.get(page.stem, "everstep"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page.read_text("utf-8"), re.S)
    assert blocks
    for kind, text in blocks:
        if kind == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                typed(line)
        else:
            exec(compile(shortened(text), page.name, "exec"), {})


@pytest.mark.parametrize("page", sorted((ROOT / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_is_short(page: Path) -> None:
    assert len(page.read_text("utf-8").splitlines()) <= MOST_LINES

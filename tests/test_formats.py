"""A run of every format that there has been: it loads, is evaluated, asked and resumed as by the code that made it.

`fixtures/run-format-N` is a whole run of 12 steps, `fixtures/run-format-N.json` what the code of its time gave for one
command, and after 16 steps. A new format adds its own; none is ever written again.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.learn import read_metrics
from everstep.runs.recipe import FORMAT

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = range(1, FORMAT + 1)
VERSION = re.compile(r"^resuming with other settings: (.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _where_texts_are(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EVERSTEP_FIXTURES", str(FIXTURES))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FORMATS, ids=lambda version: f"format-{version}")
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of the run, and what is known of it."""
    name = f"run-format-{request.param}"
    shutil.copytree(FIXTURES / name, tmp_path / "run")
    return tmp_path / "run", json.loads((FIXTURES / f"{name}.json").read_text())


def test_every_format_has_its_run() -> None:
    found = {json.loads((FIXTURES / f"run-format-{n}" / "environment.json").read_text())["format"] for n in FORMATS}
    assert found == set(FORMATS)


def test_it_evaluates_as_it_did(kept: tuple[Path, dict[str, Any]]) -> None:
    path, _ = kept
    for split, before in json.loads((path / "scores.json").read_text()).items():
        now = es.load(path).evaluate(split)
        assert now["data"] in ("as trained", "not recorded")
        numbers = {name: value for name, value in before.items() if isinstance(value, float)}
        assert len(numbers) >= 3
        assert {name: now[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)
        assert {name: now[name] for name in before if isinstance(before[name], int)} == {
            name: value for name, value in before.items() if isinstance(value, int)
        }


SAID = {
    "run-format-1": "language-model, LSTM 1 × 8, 1,487 parameters, step 12, nats per token 4.1607 on valid",
    "run-format-2": "classification, GRU 1 × 8, 928 parameters, step 12, accuracy 1.0000 on valid",
}


def test_it_says_in_a_line_what_it_is(kept: tuple[Path, dict[str, Any]]) -> None:
    path, _ = kept
    run = es.load(path)
    job = run.recipe.task
    whole = next(words for words in SAID.values() if words.startswith(job))
    assert repr(run) == f"Run({whole}, {path})"
    for name in ("scores.json", "model.safetensors"):  # of a run that is not trained yet, or damaged
        (path / name).write_bytes(b"[1]")
    assert repr(run) == f"Run({whole.partition(', step')[0]}, {path})"


def test_it_answers_as_it_did(kept: tuple[Path, dict[str, Any]]) -> None:
    path, known = kept
    verb, *options = known["command"]
    done = CliRunner().invoke(app, [verb, str(path), *options], input=known["stdin"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, known["stdout"], "")


def test_it_goes_on_as_it_would_have(kept: tuple[Path, dict[str, Any]]) -> None:
    path, known = kept
    lines: list[str] = []
    es.resume(path, lines.append, overrides=["train.max_steps=16"])
    assert [found.group(1) for line in lines if (found := VERSION.match(line))] == ["max_steps 12 -> 16"]
    assert "resuming after step 12" in lines
    assert not [line for line in lines if line.startswith(("warning", "note")) or "written again" in line]
    last: dict[str, Any] = {}
    for record in read_metrics(path / "metrics.jsonl"):
        last |= record
    assert {name: last[name] for name in known["resumed"]} == pytest.approx(known["resumed"], rel=1e-4)


def test_it_goes_on_by_the_recipe_of_today(kept: tuple[Path, dict[str, Any]]) -> None:
    path, _ = kept
    es.resume(path, lambda line: None, overrides=["train.max_steps=13"])
    lines: list[str] = []
    es.resume(path, lines.append, overrides=["train.max_steps=14"])
    assert [found.group(1) for line in lines if (found := VERSION.match(line))] == ["max_steps 13 -> 14"]
    assert es.load(path).recipe.train.max_steps == 14

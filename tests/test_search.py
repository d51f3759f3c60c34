"""The search for a cell: what is recorded, gone on with, refused, and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Refusal
from everstep.cli.app import app
from everstep.data import expand, read_blocks
from everstep.errors import ConfigError, DataError, Interrupted, RunError
from everstep.lab import cell_search as searching
from everstep.lab.cell_search import RECORDS, search
from everstep.native import toolchain
from everstep.runs.recipe_files import load_recipe
from everstep.storage.records import read_records

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")
TINY = ["model.embedding_size=8", "model.hidden_size=8", "train.batch_size=4", "objective.k1=16", "train.threads=1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text("".join(read_blocks(expand("everstep:shakespeare")))[:20_000])
    return path


@pytest.fixture
def lines() -> list[str]:
    return []


def searched(text: Path, out: Path, lines: list[str], *more: str, cells: int = 3, **how: Any) -> list[dict[str, Any]]:
    overrides = [*TINY, f"data.train={text}", *more]
    how = {"steps": 5, **how}
    return search("shakespeare-minute", out, lines.append, overrides=overrides, cells=cells, **how)


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    searched(text, out, [])
    return out


def test_every_cell_is_recorded(done: Path) -> None:
    records = read_records(done / RECORDS)
    assert [r["name"] for r in records] == ["LSTM", "GRU", "tree-0", "tree-1", "tree-2"]
    assert [r["seed"] for r in records] == [None, None, 0, 1, 2]
    for record in records:
        assert (record["outcome"], record["reason"]) == ("trained", None)
        assert 1 < record["perplexity"] < 80
        assert record["seconds"] > 0
    lstm, _, tree = records[:3]
    assert (lstm["parameters"], lstm["state"], lstm["tree"]) == (2 * 4 * 8 * 9, 16, None)
    assert (tree["backend"], tree["state"]) == ("fused", 16)
    assert tree["tree"] == json.loads(json.dumps(es.random_tree(0)))
    assert tree["parameters"] == sum(p.numel() for p in es.ExpressionCell(8, 8, tree["tree"]).parameters())


def test_the_best_can_be_trained_for_longer(done: Path, text: Path, tmp_path: Path) -> None:
    trees = [record for record in read_records(done / RECORDS) if record["tree"]]
    best = min(trees, key=lambda record: record["perplexity"])
    assert json.loads((done / "best.json").read_text()) == best["tree"]
    assert load_recipe(done / "best.yaml") == load_recipe(
        done / "recipe.yaml", [f"model.cell={json.dumps(best['tree'])}"]
    )
    es.train(done / "best.yaml", tmp_path / "run", lambda line: None, overrides=["train.max_steps=3"])
    run = es.load(tmp_path / "run")
    assert next(m for m in run.model.modules() if isinstance(m, es.ExpressionCell)).tree == es.random_tree(best["seed"])
    assert run.evaluate()["perplexity"] < 80


def test_it_goes_on_where_it_was(text: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, asked = searching.attempt, []

    def stopping(config: Any, cell: Any) -> Any:
        asked.append(cell)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return attempt(config, cell)

    monkeypatch.setattr(searching, "attempt", stopping)
    with pytest.raises(Interrupted, match="SIGINT; what was finished is in"):
        searched(text, tmp_path / "run", lines)
    first = read_records(tmp_path / "run" / RECORDS)
    assert [r["name"] for r in first] == ["LSTM", "GRU", "tree-0"]
    assert not (tmp_path / "run" / "best.json").exists()
    more = searched(text, tmp_path / "run", lines, cells=4)
    assert more[:3] == first
    assert [r["seed"] for r in more[3:]] == [1, 2, 3]
    assert "done: 3 of 6 cells; 3 to go" in lines
    assert re.search(r"   \(1 of 3, about \d+ s to go\)$", lines[lines.index("done: 3 of 6 cells; 3 to go") + 1])
    assert lines[-1].endswith("   (3 of 3)")
    assert len(asked) == 7
    assert searched(text, tmp_path / "run", lines, cells=4) == more
    assert len(asked) == 7


@pytest.mark.usefixtures("forked_workers")
def test_same_seed_same_result_in_other_processes(done: Path, text: Path, tmp_path: Path, lines: list[str]) -> None:
    two = searched(text, tmp_path / "run", lines, cells=2, processes=2)
    alone = {r["name"]: r["perplexity"] for r in read_records(done / RECORDS)}
    assert {r["name"]: r["perplexity"] for r in two} == {name: alone[name] for name in alone if name != "tree-2"}


def test_a_cell_that_diverges_is_recorded(text: Path, tmp_path: Path, lines: list[str]) -> None:
    records = searched(text, tmp_path / "run", lines, "train.learning_rate=1e38", "train.clip_norm=null", cells=1)
    assert {r["outcome"] for r in records} == {"diverged"}
    assert all(r["perplexity"] is None and r["reason"] for r in records)
    assert not (tmp_path / "run" / "best.json").exists()


def test_a_cell_that_is_not_compiled_is_not_trained(
    text: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fused, "prepare", lambda *given, **more: Refusal("for the test"))
        records = searched(text, tmp_path / "run", lines, cells=1)
    assert [r["outcome"] for r in records] == ["trained", "trained", "refused"]
    assert (records[2]["reason"], records[2]["backend"]) == ("for the test", "reference")
    assert searched(text, tmp_path / "run", lines, cells=1)[2]["outcome"] == "trained"


def test_wrong_arguments(done: Path, text: Path, tmp_path: Path, lines: list[str]) -> None:
    for wrong in ({"cells": 0}, {"steps": 0}, {"processes": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} to be a whole number ≥ 1; got 0"):
            searched(text, tmp_path / "run", lines, **wrong)
    with pytest.raises(ConfigError, match="expected --steps N"):
        searched(text, tmp_path / "run", lines, steps=None)
    with pytest.raises(ConfigError, match=r"data\.valid"):
        searched(text, tmp_path / "run", lines, "data.valid_fraction=0")
    with pytest.raises(RunError, match=r"another model.layers, train.max_steps; give another folder"):
        searched(text, done, lines, "model.layers=2", steps=6)
    with pytest.raises(DataError):
        searched(text, tmp_path / "run", lines, "data.train=nowhere.txt")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is no search"):
        searched(text, tmp_path / "file", lines)
    with pytest.raises(ConfigError, match=r"model.cell: ExpressionCell: tree\[1\] should be a leaf"):
        load_recipe("shakespeare", ["model.cell=[tanh, y]"])


def test_command_line(done: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["search", "shakespeare-minute", *TINY, f"data.train={text}", "--cells", "3", "--steps", "5"]
    shown = CliRunner().invoke(app, [*arguments, "--out", str(done)])
    assert shown.exit_code == 0, shown.output
    rows = shown.stdout.splitlines()
    assert rows[0].split() == ["place", "cell", "perplexity", "seconds", "parameters", "state"]
    assert sorted(row.split()[1] for row in rows[1:6]) == ["GRU", "LSTM", "tree-0", "tree-1", "tree-2"]
    assert (done / "pictures" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert f"train {done / 'best.yaml'}" in shown.stdout
    assert CliRunner().invoke(app, ["search", "shakespeare-minute", "--cells", "0", "--out", "x"]).exit_code == 2
    assert CliRunner().invoke(app, ["search", "shakespeare-minute"]).exit_code == 2


def test_table_leaves_out_the_middle() -> None:
    from everstep.cli.searching import table

    plain = {"seconds": 1.0, "parameters": 10, "state": 2}
    ranks = [{"name": f"tree-{k}", "tree": "x", "perplexity": 100.0 + k, **plain} for k in range(20)]
    ranks[10] |= {"name": "LSTM", "tree": None}
    places = [line.split()[0] for line in table(ranks).splitlines()[1:]]
    assert places == ["1", "2", "3", "4", "5", "…", "11", "…", "18", "19", "20"]

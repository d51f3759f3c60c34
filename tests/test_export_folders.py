"""A run is written into a folder for another runtime, is asked there, and what cannot be leaves nothing."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from small_runs import made
from torch import nn

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.errors import ConfigError, RunError
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run
from everstep.ship.checking import NotEqual
from everstep.ship.export import export
from everstep.ship.export_folder import read_card
from everstep.ship.loaded import ExportedRun, OnnxRuntime
from everstep.ship.onnx.session import Session
from everstep.ship.serving.step_engine import engine_of

pytestmark = pytest.mark.usefixtures("uncompiled", "little_data")


@pytest.mark.usefixtures("quick")
def test_a_language_model_is_asked_in_onnxruntime(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "shakespeare-minute", "model.cell=MinGRU")
    said: list[str] = []
    path = export(run, tmp_path / "out", say=said.append)
    assert said[0].startswith("step.onnx: ")
    again = es.load(path)
    lines = ["To be, or not to be", "", "I"]
    for a, b in zip(run.score(lines), again.score(lines), strict=True):
        assert a.token_logps == pytest.approx(b.token_logps, abs=1e-5)
    how: dict[str, Any] = {"prompt": "To", "length": 80, "seed": 3, "count": 2}
    assert run.generate(**how) == again.generate(**how)
    other = again.decoding(["decode.temperature=0"])
    assert (other.decode.temperature, again.decode.temperature) == (0, run.decode.temperature)
    assert other.score(lines) == again.score(lines)
    log_p, _ = again.model(torch.zeros(2, 0, dtype=torch.int64))
    assert log_p.shape == (2, 0, run.task.tokenizer.vocab_size)
    card = read_card(path)
    assert card["run"] == "run"

    def only(name: str) -> ExportedRun:
        forms = {name: card["forms"][name]}
        task: Any = run.task
        return ExportedRun(path, task, OnnxRuntime(path, {**card, "forms": forms}))

    assert only("sequence").generate(**how) == run.generate(**how)
    with pytest.raises(RunError, match="has no sequence form"):
        only("step").score(lines)


@pytest.mark.usefixtures("quick")
def test_a_classifier_and_a_tagger_are_asked_in_onnxruntime(tmp_path: Path) -> None:
    texts = ["not bad at all", "", "good . bad"]
    for reader in ("flat", "hierarchical"):
        run = made(tmp_path, "classify-minute", f"model.reader={reader}", "model.ngrams=2")
        again = es.load(export(run, tmp_path / reader))
        for a, b in zip(run.predict(texts), again.predict(texts), strict=True):
            assert a.record["probabilities"] == pytest.approx(b.record["probabilities"], abs=1e-5)
    with pytest.raises(RunError, match="gives no reasons"):
        list(again.predict(texts, explain=True))
    assert run.evaluate("valid")["loss"] == pytest.approx(again.evaluate("valid")["loss"], abs=1e-5)
    run = made(tmp_path, "tag-own")
    again = es.load(export(run, tmp_path / "tags"))
    words = ["two\tO", "pizzas\tO", "", "now\tO"]
    for head in (run, again):
        assert [one.text for one in head.predict(words)] == [one.text for one in run.predict(words)]
    assert run.evaluate("valid")["loss"] == pytest.approx(again.evaluate("valid")["loss"], abs=1e-5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "how", [("model.softmax=classes",), ("model.max_entropy_order=3", "model.max_entropy_size=50")]
)
def test_other_softmaxes_are_asked_in_onnxruntime(how: tuple[str, ...], tmp_path: Path) -> None:
    run = made(tmp_path / "run", "shakespeare-minute", *how)
    for parameter in run.model.parameters():
        parameter.data.add_(torch.randn_like(parameter) / 10)
    again = es.load(export(run, tmp_path / "out", form="sequence"))
    assert run.generate(prompt="To", length=20, seed=3) == again.generate(prompt="To", length=20, seed=3)
    for a, b in zip(run.score(["To be", "", "I"]), again.score(["To be", "", "I"]), strict=True):
        assert a.token_logps == pytest.approx(b.token_logps, abs=1e-5)


@pytest.mark.usefixtures("quick")
def test_pairs_and_trees_are_asked_in_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("text\tother\tlabel\n" + "so good\tnot so bad\tsame\ngood\tbad\tother\n" * 9)
    (tmp_path / "trees.txt").write_text(
        "(3 good)\n(1 (2 not) (3 (2 so) (3 good)))\n(1 (2 (2 not) (2 too)) (3 good))\n" * 9
    )
    pairs = (f"data.train={tmp_path}/pairs.tsv", f"data.valid={tmp_path}/pairs.tsv", "data.text=[text, other]")
    run = made(tmp_path, "classify-minute", *pairs, "data.test=null", "model.ngrams=2")
    data = (
        f"data.train={tmp_path}/trees.txt",
        f"data.valid={tmp_path}/trees.txt",
        "data.test=null",
        'data.merge={low: ["1"], high: ["3"]}',
    )
    task: Any = load_task("tree-sst2", [*data, "model.hidden_size=4", "model.embedding_size=3"])
    task.prepare()
    trees = Run(tmp_path / "trees", task, task.model())
    for one, lines in ((run, ["not bad\tso good", "\t", "good\t"]), (trees, ["(0 (0 not) (0 good))", "(0 bad)"])):
        again = es.load(export(one, tmp_path / one.recipe.task))
        for a, b in zip(one.predict(lines), again.predict(lines), strict=True):
            assert a.record["probabilities"] == pytest.approx(b.record["probabilities"], abs=1e-5)
        assert one.evaluate("valid")["loss"] == pytest.approx(again.evaluate("valid")["loss"], abs=1e-5)


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", "shakespeare-minute")
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"no step form: it answers whole texts"):
        export(made(tmp_path / "other", "classify-minute"), out, form="step")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="exists and is never overwritten"):
        export(run, tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot write .*, then export again$"):
        export(run, tmp_path / "file" / "out")
    with pytest.MonkeyPatch.context() as full:
        full.setattr(
            "everstep.storage.files._write", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(RunError, match=rf"cannot write {re.escape(str(tmp_path))}: No space left"):
            export(run, out)
    (tmp_path / f".tmp-out.{os.getpid()}").mkdir()  # left by a process that was killed
    monkeypatch.setattr("everstep.ship.checking.TOLERANCE", -1.0)
    with pytest.raises(NotEqual, match=r"step\.onnx: log_p differs"):
        export(run, out)
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
    counts: Any = load_task("sparse-matrix")
    with pytest.raises(RunError, match="cannot export: its features and adjustments"):
        export(Run(tmp_path, counts, nn.Linear(1, 1)), out)


@pytest.mark.usefixtures("quick")
def test_the_comparison_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(*_: Any) -> Any:
        raise AssertionError("a backend was asked")

    run = made(tmp_path / "run", "shakespeare-minute", "model.cell=MinGRU")
    for backend in BACKENDS.values():
        monkeypatch.setattr(backend, "prepare", prepared)
    assert read_card(export(run, tmp_path / "out"))["forms"]["step"]["check"]["difference"] < 1e-5


@pytest.mark.usefixtures("quick")
def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    path = export(made(tmp_path / "run", "shakespeare-minute"), tmp_path / "out")
    whole = (path / "export.json").read_text()
    for old, new, said in [
        ('"to": "onnx"', '"to": "c"', "SHA-256"),
        ('"format": 1', '"format": 2', "newer version"),
        ('"recipe_format": ', '"recipe_format": 9', "a recipe of a newer version"),
        ('"to"', '"too"', "lacks 'to'"),
        ('"files"', '"file"', "lacks 'files'"),
        ('"forms"', '"form"', "lacks 'forms'"),
        ('"recipe.yaml"', '"../recipe.yaml"', r"'\.\./recipe\.yaml', which is no file of the folder"),
        ('"recipe.yaml"', '"/recipe.yaml"', "no file of the folder"),
        ('"file": "step.onnx"', '"file": "other.onnx"', "no file of the folder"),
        ("{", "[", "cannot read"),
    ]:
        (path / "export.json").write_text(whole.replace(old, new, 1))
        with pytest.raises(RunError, match=said):
            es.load(path)
    (path / "export.json").write_text(whole)
    with pytest.raises(RunError, match="on the CPU"):
        es.load(path, device="cuda")
    (path / "step.onnx").write_bytes(b"no model")
    with pytest.raises(RunError, match=r"step\.onnx is not the one"):
        es.load(path)
    with pytest.raises(RunError, match=r"onnxruntime .* refuses step"):
        Session("step", b"no model")


OWN = (
    Path(__file__).with_name("own_cells.py").read_text("utf-8")
    + """
from everstep.tasks.language_model import LanguageModel


class Job(LanguageModel):
    pass
"""
)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("own", ["model.cell=deep/mine.py:Mine", "task=deep/mine.py:Job"])
def test_code_of_the_users_own_goes_along_and_needs_trust(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    Path("deep/mine.py").write_text(OWN)
    run = made(tmp_path / "run", "shakespeare-minute", own)
    out = export(run, tmp_path / "out", form="sequence")
    for other in ("deep/mine.py", "mine.py"):  # files of that name elsewhere are no part of it
        Path(other).write_text("raise SystemExit")
    with pytest.raises(RunError, match=r"code/mine\.py.*--trust-code"):
        es.load(out)
    again = es.load(out, trust_code=True)
    assert again.generate(prompt="To", length=20, seed=3) == run.generate(prompt="To", length=20, seed=3)
    (out / "code" / "mine.py").write_text(OWN + "\n")
    with pytest.raises(RunError, match=r"mine\.py is not the one that was exported"):
        es.load(out, trust_code=True)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("width", "context"), [(1, "initial"), (3, "attention")])
def test_a_translator_is_asked_in_onnxruntime(width: int, context: str, tmp_path: Path) -> None:
    how = ("data.max_size=300", f"decode.beam_width={width}", "decode.max_length=8", f"model.context={context}")
    run = made(tmp_path / "run", "translate-minute", *how)
    for parameter in run.model.parameters():
        parameter.data.mul_(5)  # so that hypotheses differ
    said: list[str] = []
    again = es.load(export(run, tmp_path / "out", say=said.append))
    assert said[0] == "note: no sequence form: a target is written step by step; use the step"
    assert [line.partition(":")[0] for line in said[1:3]] == ["start.onnx", "step.onnx"]
    lines = ["We are here.", "", "I see a dog and you"]
    assert [one.text for one in run.predict(lines)] == [one.text for one in again.predict(lines)]
    for one in (run, again):  # a server has no sessions of it
        assert engine_of(one) == "its state begins with source, source_lengths, and sessions begin without"
    given = ["We are\tnous sommes", "I\tje"]
    for a, b in zip(run.score(given), again.score(given), strict=True):
        assert a.token_logps == pytest.approx(b.token_logps, abs=1e-5)
    with pytest.raises(ConfigError, match="no sequence form: a target is written step by step"):
        export(run, tmp_path / "not", form="sequence")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("classify-numbers-minute", ["[[0, 1], [1, 0], [null, 2]]", "", "[[1, 2]]"]),
        ("motion-minute", ["[[0, 1], [1, 0], [2, 2]]"]),
        ("forecast-minute", None),
    ],
)
def test_models_of_numbers_are_asked_in_onnxruntime(name: str, lines: list[str] | None, tmp_path: Path) -> None:
    task: Any = load_task(name, ["model.hidden_size=4"])
    task.prepare()
    run = Run(tmp_path / "run", task, task.model())
    again = es.load(export(run, tmp_path / "out"))
    found: Any = again.task.validate(again.model)
    assert task.validate(run.model) == pytest.approx(found, abs=1e-5)
    if lines is None:
        stream, other = run.stream(), again.stream()
        first, second = stream.start("a", "2024-01-01 00:00"), other.start("a", "2024-01-01 00:00")
        for value in (3.0, None, 5.0):
            (a, first), (b, second) = stream(value, first), other(value, second)
            assert b.quantiles == pytest.approx(a.quantiles, rel=1e-4, nan_ok=True)
        return
    for a, b in zip(run.predict(lines), again.predict(lines), strict=True):
        fields = zip(*(one.text.replace("\t", ",").split(",") for one in (a, b)), strict=True)
        assert all(one == other or float(one) == pytest.approx(float(other), abs=1e-4) for one, other in fields)


@pytest.mark.usefixtures("quick")
def test_what_onnxruntime_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", "shakespeare-minute")
    monkeypatch.setattr("everstep.ship.onnx.graph.IR_VERSION", 1000)
    monkeypatch.setattr("onnx.checker.check_model", lambda model: None)
    with pytest.raises(RunError, match=r"onnxruntime .* refuses step\.onnx"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())

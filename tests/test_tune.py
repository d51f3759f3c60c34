"""Tuning a recipe: the keys that are read, trials that survive kills, what is pruned, told, refused and shown."""

from __future__ import annotations

import json
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import apart
import pytest
from matplotlib.figure import Figure
from tuned_runs import KEYS, RECIPE, given, tuned, written
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, DataError, Interrupted, RunError
from everstep.lab import tuning
from everstep.lab.tuned_keys import Choices, Range, parse_tuned, read_keys, usual_keys
from everstep.lab.tuning import ranked, tune
from everstep.learn.metrics import read_metrics
from everstep.look.tuned_trials import draw_trials
from everstep.runs import training
from everstep.runs.recipe_files import flat, load_recipe

pytest.importorskip("optuna", reason="optuna is not installed")
from everstep.lab.study_journal import JOURNAL, StudyJournal

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text"))


def without_time(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_COMPILER", "none")
        tuned(text, out)
    return out


def test_what_is_a_range_and_what_a_value() -> None:
    assert parse_tuned("a.b=1..5") == Range("a.b", 1, 5)
    assert parse_tuned("a.b=-.5..2e1") == Range("a.b", -0.5, 20.0)
    assert parse_tuned("a.b= log:1e-4..1e-2") == Range("a.b", 1e-4, 1e-2, log=True)
    assert parse_tuned("a=x, [1, 2],'a,b'") == Choices("a", ("x", "[1, 2]", "'a,b'"))
    for plain in ("a=[1, 2]", "a={b: 1, c: 2}", "a='x, y'", "a=../b.txt", "a=1", "a", "a=x..y"):
        assert parse_tuned(plain) is None


WRONG = [
    ("model.hiden_size=4..12", "model.hiden_size: unknown key; did you mean model.hidden_size?"),
    ("learning_rate=0.1..0.2", "did you mean train.learning_rate?"),
    ("model.hidden_size=12..4", "LOW below HIGH; got 12..4"),
    ("train.learning_rate=log:0..1", "LOW above 0"),
    ("train.learning_rate=log:1", "expected log:LOW..HIGH"),
    ("model.hidden_size=0.5..4", "model.hidden_size: expected a whole number"),
    ("model.dropout=0..1.5", "model.dropout: expected a number"),
    ("model.cell=LSTM,LSMT", "did you mean LSTM"),
    ("model.cell=LSTM,,GRU", "none empty"),
    ("model.cell=1..2", "model.cell"),
    ("task=classification,tagging", "comparable"),
    ("train.select=loss,accuracy", "comparable"),
]


@pytest.mark.parametrize(("key", "message"), WRONG)
def test_wrong_keys_are_refused_before_any_work(text: Path, tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tuned(text, tmp_path / "study", key)
    assert message in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_other_refusals(text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("trials", "workers", "unpruned"):
        with pytest.raises(ConfigError, match=f"expected {wrong} to be a whole number ≥ 1; got 0"):
            tuned(text, tmp_path / "study", **{wrong: 0})
    with pytest.raises(ConfigError, match=r"data\.valid"):
        tuned(text, tmp_path / "study", "data.valid_fraction=0", *KEYS)
    said: list[str] = []
    with pytest.raises(ConfigError, match="ngram-language-model has none"):
        tune("kneser-ney", tmp_path / "study", said.append)
    assert not said  # no key of its own is told as refused
    with pytest.raises(ConfigError, match="each key once"):
        tuned(text, tmp_path / "study", KEYS[0], KEYS[0])
    with pytest.raises(DataError):
        tune(RECIPE, tmp_path / "study", print, keys=["data.train=nowhere.txt", *KEYS])
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'everstep\[tune\]'"):
            tuned(text, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    with pytest.raises(RunError, match=r"another model.layers, model.hidden_size, unpruned; give another"):
        tuned(text, whole, "model.layers=2", "model.hidden_size=4..13", *KEYS[1:], unpruned=3)
    with pytest.raises(RunError, match="no study"):
        tuned(text, text.parent)


def test_the_usual_keys(text: Path) -> None:
    found = {one.key: one for one in usual_keys(load_recipe("ptb-small", ["model.hidden_size=200"]))}
    rate = flat(load_recipe("ptb-small"))["train.learning_rate"]
    assert found["train.learning_rate"].low == pytest.approx(rate / 10)
    assert (found["model.hidden_size"].low, found["model.hidden_size"].high) == (100, 400)
    assert found["model.dropout"].ends == ("0.0", "0.6")
    lines: list[str] = []
    fixed, keys = read_keys(RECIPE, given(text, "train.max_steps=3"), lines.append)
    assert [one.key for one in keys] == ["train.learning_rate", "model.hidden_size", "model.dropout"]
    assert fixed[-1] == "train.max_steps=3"
    assert not lines


def test_trials_are_runs(text: Path, whole: Path) -> None:
    plan, found = tune(RECIPE, whole, print, keys=given(text), trials=4, unpruned=4)  # nothing is left to do
    assert [record["outcome"] for record in found] == ["trained"] * 4
    for record in found:
        recipe = flat(load_recipe(whole / record["run"] / "config.yaml"))
        assert {key: recipe[key] for key in record["values"]} == record["values"]
        assert recipe["seed"] == 1 + record["trial"]
        assert 4 <= record["values"]["model.hidden_size"] <= 12
        assert 1e-3 <= record["values"]["train.learning_rate"] <= 1e-1
        curve = [m["valid"] for m in read_metrics(whole / record["run"] / "metrics.jsonl") if "valid" in m]
        assert (record["value"], len(curve), record["steps"]) == (min(curve), 2, 4)
    best = ranked(plan, found)[0]
    assert best["value"] == min(record["value"] for record in found)
    assert es.load(whole / best["run"]).evaluate("valid")["loss"] < 5
    assert flat(load_recipe(whole / "best.yaml")) == flat(load_recipe(whole / best["run"] / "config.yaml"))


def _tune_until_killed(text: Path, out: Path) -> None:
    watch = tuning._watch

    def dying(journal: Any, trial: Any, plan: Any, record: Any) -> Any:
        if trial.number == 2 and record["step"] == 4:
            with open(plan.out / "journal.jsonl", "ab") as file:
                file.write(b'{"op_code":8,"tri')  # as if the kill came while it wrote
            os.kill(os.getpid(), signal.SIGKILL)
        return watch(journal, trial, plan, record)

    tuning._watch = dying
    tuned(text, out)


def test_a_killed_study_has_the_trials_of_a_whole_one(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = tmp_path / "study", tmp_path / "told.txt"
    assert apart.ended(apart.started(_tune_until_killed, text, out, told=told)) == -signal.SIGKILL, told.read_text()
    resumed: list[Path] = []
    resume = training.resume

    def seen(path: Any, *rest: Any, **more: Any) -> Any:
        resumed.append(Path(path))
        assert list((Path(path) / "checkpoints").iterdir())
        return resume(path, *rest, **more)

    monkeypatch.setattr(training, "resume", seen)
    found = tuned(text, out)
    assert resumed == [out / "trial-0002"]
    assert without_time(found) == without_time(tuned(text, whole))
    for name in (record["run"] for record in found):
        assert (out / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()


def test_it_stops_on_a_signal_and_goes_on(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, out = tuning._watch, tmp_path / "study"

    def stopping(journal: Any, trial: Any, plan: Any, record: Any) -> None:
        if trial.number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        watch(journal, trial, plan, record)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_watch", stopping)
        with pytest.raises(Interrupted, match=r"SIGINT; what was finished is in .*the same command goes on"):
            tuned(text, out, trials=2)
    lines: list[str] = []
    assert [record["outcome"] for record in tuned(text, out, trials=2, lines=lines)] == ["trained", "trained"]
    assert lines[0] == "done: 1 of 2 trials"
    assert len(tuned(text, out, trials=3)) == 3


def test_trials_worse_than_the_median_are_pruned_and_counted(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    found = tuned(text, out, "train.learning_rate=0.02,1e-9", trials=8, unpruned=2)
    curves = [
        [m["valid"] for m in read_metrics(out / record["run"] / "metrics.jsonl") if "valid" in m] for record in found
    ]
    for record, curve in zip(found, curves, strict=True):
        ended = [curves[r["trial"]] for r in found[: record["trial"]] if r["outcome"] == "trained"]
        worse = [
            len(ended) >= 2 and min(curve[: at + 1]) > statistics.median(other[at] for other in ended)
            for at in range(len(curve))
        ]
        assert worse == [*[False] * (len(curve) - 1), record["outcome"] == "pruned"]
    pruned = [record for record in found if record["outcome"] == "pruned"]
    assert pruned
    assert len(pruned) < len(found) - 1
    es.resume(out / pruned[0]["run"], lambda line: None)  # it can still be trained to its end
    assert es.load(out / pruned[0]["run"]).evaluate("valid")["loss"] > 3


def test_a_pruned_trial_that_was_killed_before_it_said_so(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    plan, _ = tune(RECIPE, out, print, keys=given(text), trials=1)
    with StudyJournal(out, False, 5).taken(plan.keys, 2, plan.seed) as trial:
        assert trial is not None
        trial.report(4.0, 0)
        trial.set_user_attr("pruned", 1)
        with StudyJournal(out, False, 5).taken(plan.keys, 2, plan.seed) as other:  # it is held
            assert other is None
    found = tuned(text, out, trials=2, unpruned=5)
    assert [record["outcome"] for record in found] == ["trained", "pruned"]


def test_a_trial_that_diverges_ends_nothing(text: Path, tmp_path: Path) -> None:
    keys = ("train.learning_rate=0.02,1e38", "train.clip_norm=null", "train.optimizer=sgd")
    lines: list[str] = []
    found = tuned(text, tmp_path / "study", *keys, trials=5, unpruned=5, lines=lines)
    for record in found:
        diverges = record["values"]["train.learning_rate"] == "1e38"
        assert record["outcome"] == ("diverged" if diverges else "trained")
        assert bool(record["reason"]) == diverges
    assert {record["outcome"] for record in found} == {"diverged", "trained"}
    assert any("diverged" in line and "trial" in line for line in lines)


def test_a_trial_that_the_recipe_refuses_ends_nothing(text: Path, tmp_path: Path) -> None:
    keys = (
        "train.min_learning_rate=1e-9,0.005,0.006",
        "train.learning_rate=0.001,0.002,0.008",
    )  # each alone is allowed
    found = tuned(text, tmp_path / "study", *keys, trials=6, unpruned=6)
    for record in found:
        least, rate = map(float, record["values"].values())
        refused = least > rate
        assert record["outcome"] == ("refused" if refused else "trained")
        assert (f"expected at most learning_rate ({rate:g}); got {least:g}" in (record["reason"] or "")) == refused
    assert {record["outcome"] for record in found} == {"refused", "trained"}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_several_processes_share_a_study(text: Path, tmp_path: Path) -> None:
    _, found = tune(RECIPE, tmp_path / "study", print, keys=given(text), trials=4, workers=2, unpruned=4)
    assert [record["outcome"] for record in found] == ["trained"] * 4
    assert len({json.dumps(record["values"]) for record in found}) == 4


@pytest.mark.slow
def test_the_highest_accuracy_is_the_best(tmp_path: Path) -> None:
    limits = ["train.max_steps=6", "train.max_epochs=null", "train.validate_every=3", "train.threads=1"]
    keys = [*limits, "model.hidden_size=4", "model.embedding_size=4", "train.learning_rate=0.05,0.0001"]
    plan, found = tune("classify-minute", tmp_path / "study", print, keys=keys, trials=3)
    curves = [read_metrics(tmp_path / "study" / record["run"] / "metrics.jsonl") for record in found]
    best = [max(m["valid.accuracy"] for m in curve if "valid" in m) for curve in curves]
    assert (plan.measure, plan.highest) == ("accuracy", True)
    assert [record["value"] for record in found] == best
    assert ranked(plan, found)[0]["value"] == max(best)


def test_a_damaged_journal(whole: Path, tmp_path: Path) -> None:
    lines = (whole / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:3]) + b"nonsense\n" + b"".join(lines[3:]))
    with pytest.raises(RunError, match="damaged"):
        StudyJournal(tmp_path, False, 5)


def test_the_command(text: Path, whole: Path) -> None:
    command = ["tune", RECIPE, *given(text), "--trials", "4", "--unpruned", "4", "--out", str(whole)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "The best run is" in shown.output
    assert f"train {whole / 'best.yaml'}" in shown.output
    assert (whole / "pictures" / "trials.png").stat().st_size > 10_000
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (found["measure"], found["highest"], len(found["trials"])) == ("loss", False, 4)
    assert found["trials"][found["best"]]["outcome"] == "trained"


def test_the_picture_names_the_best_of_a_measure_that_should_be_high(tmp_path: Path) -> None:
    def trial(number: int, outcome: str, value: float | None) -> dict[str, Any]:
        return {"trial": number, "outcome": outcome, "value": value, "values": {"a": 0.1 + number, "b": "x"}}

    trials = [trial(0, "trained", 0.5), trial(1, "trained", 0.8), trial(2, "pruned", 0.9), trial(3, "diverged", None)]
    words = draw_trials(trials, "accuracy", True, tmp_path / "x.png", ["a"], {"b": 0.7, "a": 0.3})
    assert words.startswith("The highest accuracy on the validation split is 0.8000, that of trial 1")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_whole_numbers_have_whole_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("everstep.look.tuned_trials.save", lambda figure, path: figures.append(figure))
    sizes = [21, 23, 32]
    trials = [
        {"trial": n, "outcome": "trained", "value": 0.5, "values": {"size": size}} for n, size in enumerate(sizes)
    ]
    draw_trials(trials, "loss", False, tmp_path / "x.png")
    _, axes = figures[0].axes
    assert len(axes.get_xticks()) > 2
    assert all(tick == int(tick) for tick in axes.get_xticks())

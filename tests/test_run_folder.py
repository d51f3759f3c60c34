"""A run's folder: begun once, changed by nobody in silence, and no way to write anywhere else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apart
import pytest
import torch
from little_data import shakespeare
from safetensors.torch import load_file, save_file

import everstep as es
from everstep.errors import CheckpointError, Interrupted, RunError
from everstep.learn import RunLock, checkpoint
from everstep.learn.weights import load_weights, weights_step
from everstep.runs import training as runs
from everstep.runs.folder import begun, is_free, is_run
from everstep.runs.opening import opened
from everstep.runs.pictures import pictures_of
from everstep.runs.run import Run
from everstep.runs.training import resume
from everstep.runs.yaml_text import dump_yaml, parse_yaml
from everstep.storage import files
from everstep.storage.files import remove

TINY = [
    "model.embedding_size=8", "model.hidden_size=16", "train.batch_size=4", "objective.k1=16", "train.max_minutes=null",
    "train.validate_every=2", "train.max_steps=4",
]  # fmt: skip


def quietly(_: str) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("EVERSTEP_COMPILER", "none")  # nothing here is about speed
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(shakespeare()[: shakespeare().rfind("\n", 0, 8_000) + 1])
    return path


def trained(text: Path, out: Path, *more: str, **options: Any) -> Run:
    return es.train("shakespeare-minute", out, quietly, overrides=[*TINY, f"data.train={text}", *more], **options)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(text, tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A trained run to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def edit(run: Path, section: str, **values: Any) -> None:
    path = run / "config.yaml"
    recipe = parse_yaml(path.read_text(), "config.yaml")
    recipe[section].update(values)
    path.write_text(dump_yaml(recipe))


# -------------------------------------------------------------------------------------------------- what has changed


def test_a_score_of_a_text_that_changed_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {name: tmp_path / f"{name}.txt" for name in ("train", "valid", "test")}
    for name, path in texts.items():
        path.write_text(shakespeare()[:4000] + name + "\n")
    where = [f"data.{name}={path}" for name, path in texts.items()]
    run = trained(texts["train"], tmp_path / "run", *where)
    before = {name: es.load(run.path).evaluate(name) for name in texts}
    assert {score["data"] for score in before.values()} == {"as trained"}
    assert "warning" not in capsys.readouterr().err
    for name, path in texts.items():
        path.write_text(shakespeare()[:2000] + name + "\n")
        score = es.load(run.path).evaluate(name)
        assert score["data"] == "changed"
        assert score["nats_per_token"] != before[name]["nats_per_token"]
        assert f"warning: {name} has changed since" in capsys.readouterr().err
    scores = json.loads((run.path / "scores.json").read_text())
    assert {name: score["data"] for name, score in scores.items()} == {"valid": "as trained", "test": "as trained"}


def test_the_end_of_a_training_text_that_changed_is_another_text(text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "play.txt"
    copy.write_bytes(text.read_bytes())
    run = trained(copy, tmp_path / "run")
    with copy.open("a") as more:
        more.write("Enter a ghost.\n" * 20)
    assert es.load(run.path).evaluate("valid")["data"] == "changed"
    os.utime(copy)
    copy.write_bytes(text.read_bytes())
    assert es.load(run.path).evaluate("valid")["data"] == "as trained"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("model", "zoneout", 0.3), ("model", "cell", "GRU"), ("data", "lowercase", True), ("data", "valid_fraction", 0.4)],
)
def test_a_recipe_that_no_longer_fits_the_weights_is_refused(run: Path, section: str, key: str, value: Any) -> None:
    edit(run, section, **{key: value})
    with pytest.raises(
        RunError, match=rf"config\.yaml is not what .* trained by: {section}\.{key}: was .*, now {value!r}"
    ):
        es.load(run)


def test_what_changes_no_result_may_be_edited(run: Path, text: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text.read_bytes())
    edit(run, "data", train=str(moved))
    edit(run, "decode", temperature=0.5)
    edit(run, "train", max_steps=6)
    score = es.load(run).evaluate("valid")
    assert score["data"] == "as trained"
    assert resume(run, quietly).recipe.train.max_steps == 6
    assert es.load(run).evaluate("valid")["nats_per_token"] != score["nats_per_token"]


def test_another_vocabulary_of_the_same_size_is_refused(run: Path) -> None:
    path = run / "tokenizer.json"
    described = json.loads(path.read_text())
    vocabulary = described["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    path.write_text(json.dumps(described))
    for use in (es.load, lambda path: resume(path, quietly)):
        with pytest.raises(RunError, match=r"tokenizer\.json is not the one that the run was begun with"):
            use(run)


def test_environment_is_sealed(run: Path) -> None:
    path = run / "environment.json"
    whole = path.read_text()
    for before, after in (
        ('"cores": ', '"cores": 1'),
        ('"valid": "', '"valid": "0'),
        ('"model.hidden_size": 16', '"model.hidden_size": 17'),
    ):
        assert before in whole
        path.write_text(whole.replace(before, after))
        with pytest.raises(RunError, match=r"environment\.json: missing or damaged .it is not what its SHA-256"):
            es.load(run)


def test_a_run_of_an_early_version_is_used_as_before(run: Path) -> None:
    """Without digests in its weights and in `environment.json`, and without a word of which run they are."""
    scores = es.load(run).evaluate("valid")
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors", {"step": "4"})
    path = run / "environment.json"
    early = {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key not in ("seal", "recipe", "files", "data", "run")
    }
    for folder in (run / "checkpoints").iterdir():
        found = checkpoint.load(folder)
        del found.data["identity"]["run"]
        shutil.rmtree(folder)
        checkpoint.save(folder, found)
    path.write_text(json.dumps(early | {"format": 1}))
    old = es.load(run).evaluate("valid")
    assert old == scores | {"data": "not recorded"}
    edit(run, "train", max_steps=6)
    resume(run, quietly)
    assert es.load(run).evaluate("valid")["data"] == "not recorded"


# ----------------------------------------------------------------------------------------------------------- weights


def test_any_flipped_bit_of_the_weights_is_found(run: Path) -> None:
    path = run / "model.safetensors"
    whole = path.read_bytes()
    model = es.load(run).model
    for place in range(0, 8 * len(whole), max(1, 8 * len(whole) // 400)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"model\.safetensors"):
            load_weights(model, path, sealed=True)
        assert weights_step(path) in (None, 4)
    path.write_bytes(whole)
    load_weights(model, path, sealed=True)


@pytest.mark.parametrize("change", ["seed=7", "train.learning_rate=0.001"])
def test_weights_of_another_run_of_the_same_shape_are_noticed(
    change: str, run: Path, text: Path, tmp_path: Path
) -> None:
    path = run / "model.safetensors"
    own, other = path.read_bytes(), trained(text, tmp_path / "other", change).path
    assert trained(text, tmp_path / "again", "train.keep_last=5").path.joinpath(path.name).read_bytes() == own
    shutil.copy(other / path.name, path)
    with pytest.raises(RunError, match=r"model\.safetensors is of another run .*everstep train --resume"):
        es.load(run)
    with pytest.raises(RunError, match="is of another run"):
        trained(text, tmp_path / "tuned", change, start_from=run)
    resume(run, quietly)
    assert path.read_bytes() == own
    shutil.copy(other / path.name, path)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(RunError, match=r"cannot resume, since this is not the run that was started: run: was '"):
        resume(run, quietly)


def test_weights_of_a_checkpoint_are_not_taken_for_the_runs(run: Path) -> None:
    shutil.copyfile(max((run / "checkpoints").glob("step-*")) / "model.safetensors", run / "model.safetensors")
    with pytest.raises(RunError, match=r"has no SHA-256.*train --resume"):
        es.load(run)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "gone"])
def test_resuming_a_finished_run_mends_its_weights(run: Path, damage: str) -> None:
    path = run / "model.safetensors"
    whole, scores = path.read_bytes(), (run / "scores.json").read_bytes()
    if damage == "other":
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path, {"step": "4"})
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-9], "empty": b""}[damage])
    resume(run, quietly)
    assert path.read_bytes() == whole
    assert (run / "scores.json").read_bytes() == scores


def test_scores_are_not_written_from_damaged_weights(run: Path) -> None:
    scores = (run / "scores.json").read_bytes()
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + b"\0\0\x80\x40" * 2)
    for folder in (run / "checkpoints").iterdir():
        (folder / "manifest.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resume(run, quietly)
    assert (run / "scores.json").read_bytes() == scores


# --------------------------------------------------------------------------------------------------------- beginning


def test_of_two_that_begin_at_once_one_is_refused_before_it_writes(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever comes second, and however far the first has come when it does."""
    out = tmp_path / "run"
    seen: list[str] = []

    def second(*arguments: Any) -> Any:
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(RunError, match=r"in use by another process|never overwritten"):
            subprocessed(text, out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        seen.append("tried")

    begin, fit = runs._Job.begin, runs._Job.fit
    monkeypatch.setattr(runs._Job, "begin", lambda job: (second(), begin(job), second()))
    monkeypatch.setattr(runs._Job, "fit", lambda job, resume, callbacks=(): (second(), fit(job, resume))[1])
    trained(text, out)
    assert len(seen) == 3
    assert es.load(out).evaluate("valid")["data"] == "as trained"


def subprocessed(text: Path, out: Path) -> None:
    """Another process that would train into the same folder."""
    overrides = [*TINY, f"data.train={text}", "model.hidden_size=8", "data.lowercase=true"]
    told = out.with_name("told.txt")
    told.unlink(missing_ok=True)
    command = ["train", "shakespeare-minute", *overrides, "--out", str(out)]
    if apart.ended(apart.started(apart.command, command, told=told)) == 2:
        raise RunError(told.read_text().replace("not overwritten", "never overwritten"))


@pytest.mark.parametrize("function", ["write", "fsync", "rename"])
def test_killed_at_any_write_of_its_beginning_it_is_a_run_or_can_begin_anew(
    function: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    jobs: list[Any] = []
    monkeypatch.setattr(runs._Job, "fit", lambda job, resume, callbacks=(): jobs.append(job))
    trained(text, tmp_path / "first")
    real, outcomes = getattr(os, function), []
    for at in range(1, 30):
        jobs[0].out = out = tmp_path / str(at)
        with RunLock(out):
            pass
        calls = iter(range(1, 100))

        def killed(*arguments: Any, calls: Any = calls, at: int = at) -> Any:
            if next(calls) == at:
                raise Killed
            return real(*arguments)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(files, f"_{function}", killed)
            jobs[0].begin()
        outcomes.append(is_run(out))
        assert is_run(out) != is_free(out, ("tokenizer.json",))
        if not is_run(out):
            with begun(out, ("tokenizer.json",)):
                jobs[0].begin()
        assert opened(out, False)[0].recipe == jobs[0].task.recipe
        if next(calls) <= at:
            break
    assert outcomes.count(False) >= 3
    assert outcomes[-1]


def test_a_folder_of_anything_else_is_never_begun_in(text: Path, tmp_path: Path) -> None:
    for number, names in enumerate(
        (["tokenizer.json"], ["notes.txt"], [".lock", "notes.txt"], [".lock", "config.yaml"])
    ):
        out = tmp_path / str(number)
        out.mkdir()
        for name in names:
            (out / name).write_text("mine")
        with pytest.raises(RunError, match="never overwritten"):
            trained(text, out)
        assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(names, "mine")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_run_begins_leaves_nothing(
    number: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everstep.runs import text_data as texts

    def signalled(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(texts, "prepare", signalled)
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name}; .* nothing is left") as caught:
        trained(text, tmp_path / "run")
    assert caught.value.exit_code == 128 + number
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------- folders from elsewhere

WRITTEN = ["scores.json", "README.md", "metrics.jsonl", "model.safetensors", "environment.json"]
ASIDE = [f".tmp-{name}" for name in WRITTEN] + ["checkpoints/.tmp-step-00000006", "checkpoints/step-00000006"]


@pytest.mark.parametrize("name", [*WRITTEN, *ASIDE])
@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard"])
def test_nothing_is_written_through_a_link(name: str, kind: str, run: Path, tmp_path: Path) -> None:
    """What is sent as a run cannot write to a file of whoever resumes it."""
    link, victim = run / name, tmp_path / "victim"
    content = link.read_bytes() if link.is_file() else b"mine"
    victim.write_bytes(content)
    remove(link)
    if kind == "hard":
        os.link(victim, link)
    else:
        link.symlink_to(victim)
    if kind == "dangling":
        victim.unlink()
    edit(run, "train", max_steps=6)
    with suppress(RunError):
        resume(run, quietly)
    assert (victim.read_bytes() if victim.exists() else None) == (None if kind == "dangling" else content)


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "long", "pipe"])
def test_a_lock_that_is_none_of_ours_is_refused(kind: str, run: Path, tmp_path: Path) -> None:
    lock, victim = run / ".lock", tmp_path / "victim"
    lock.unlink()
    victim.write_text("mine")
    if kind == "hard":
        os.link(victim, lock)
    elif kind == "long":
        lock.write_text("a diary, which happens to have that name")
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(victim if kind == "symbolic" else tmp_path / "none")
    with pytest.raises(RunError, match=r"\.lock is .*; if no process uses .*, delete it"):
        resume(run, quietly)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_folders_that_are_links_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if name == "checkpoints":
        shutil.move(run / name, elsewhere)
        (elsewhere / ".tmp-mine").mkdir()
    else:
        pytest.importorskip("tensorboard")
        elsewhere.mkdir()
        edit(run, "train", tensorboard=True)
    before = sorted(elsewhere.rglob("*"))
    (run / name).symlink_to(elsewhere)
    edit(run, "train", max_steps=6)
    with pytest.raises(RunError, match=f"{name} is a link to .*elsewhere; put a folder there, or delete it"):
        resume(run, quietly)
    assert sorted(elsewhere.rglob("*")) == before


def test_pictures_are_not_drawn_through_links(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run / "pictures").mkdir()
    (run / "pictures" / "curves.png").symlink_to(victim)
    (run / "pictures" / "mine.png").write_text("mine, too")
    assert [path.name for path in pictures_of(run).iterdir()] == ["mine.png"]
    shutil.rmtree(run / "pictures")
    (run / "pictures").symlink_to(tmp_path)
    with pytest.raises(RunError, match="pictures is a link"):
        pictures_of(run)
    assert victim.read_text() == "mine"

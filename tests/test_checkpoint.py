"""Checkpoints: whole or refused, whatever happens to the files or to the disk."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import learn_toy as toy
import pytest
import torch

from everstep.errors import CheckpointError, EverstepError, RunError
from everstep.learn import Checkpoint, RunLock, Store, checkpoint
from everstep.storage import files


def make(value: float = 1.0, valid: float | None = None) -> Checkpoint:
    tensors = {"model": {"w": torch.full((3,), value), "n": torch.tensor(7)}, "carried": {"0.h": torch.zeros(2, 0)}}
    return Checkpoint({**tensors, "empty": {}}, {"step": value, "text": "ü"}, valid)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    groups = {group for group in [*a.tensors, *b.tensors] if a.tensors.get(group) or b.tensors.get(group)}
    return (a.data, a.valid) == (b.data, b.valid) and all(
        a.tensors[group].keys() == b.tensors[group].keys()
        and all(torch.equal(tensor, b.tensors[group][name]) for name, tensor in a.tensors[group].items())
        for group in groups
    )


def quiet(line: str) -> None: ...


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    original = Checkpoint(
        {"model": {"a": shared, "b": shared[1:].view(3, 1), "t": torch.ones(2, 3).T}}, {"x": [1]}, 2.5
    )
    checkpoint.save(tmp_path / "c", original)
    assert same(checkpoint.load(tmp_path / "c"), original)


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    checkpoint.save(folder, make())
    generator = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        bits = generator.sample(range(8 * len(whole)), min(400, 8 * len(whole)))
        for bit in bits:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=path.name):
                checkpoint.load(folder)
        path.write_bytes(whole)
    assert same(checkpoint.load(folder), make())


def test_truncation_and_loss(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    checkpoint.save(folder, make())
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match=path.name):
                checkpoint.load(folder)
        path.write_bytes(whole + b" ")
        with pytest.raises(CheckpointError, match=path.name):
            checkpoint.load(folder)
        path.unlink()
        with pytest.raises(CheckpointError, match=f"{path.name} is missing"):
            checkpoint.load(folder)
        path.mkdir()
        with pytest.raises(CheckpointError, match=f"{path.name} cannot be read"):
            checkpoint.load(folder)
        path.rmdir()
        path.write_bytes(whole)


def test_a_newer_format_is_named_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, 2)
    store.save(1, make(1))
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    store.save(2, make(2))
    monkeypatch.undo()
    with pytest.raises(RunError, match="made by a newer version") as caught:
        store.newest(quiet)
    assert not isinstance(caught.value, CheckpointError)


def test_the_best_outlives_the_last(tmp_path: Path) -> None:
    store = Store(tmp_path, 1)
    for step, valid in enumerate([3.0, 1.0, 2.0, 2.5, None]):
        store.save(step, make(step, valid))
    assert store.folders() == [store.folder(4), store.folder(1)]
    store.save(5, make(5, 0.5))
    assert store.folders() == [store.folder(5)]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_damaged_newer_one_is_named_and_the_earlier_used(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    for step in (1, 2, 3):
        store.save(step, make(step))
    (store.folder(3) / "data.json").write_text("{}")
    (store.folder(2) / "model.safetensors").unlink()
    said: list[str] = []
    found = store.newest(said.append)
    assert found is not None
    assert found.data["step"] == 1
    assert "step-00000003" in said[0]
    assert "data.json" in said[0]
    assert "model.safetensors is missing" in said[1]
    assert store.folders() == [store.folder(1)]  # so that the damaged ones push no good one out
    store.save(3, make(33))
    again = store.newest(said.append)
    assert again is not None
    assert again.data["step"] == 33


def test_all_damaged_is_an_error_and_touches_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    assert store.newest(quiet) is None
    store.save(1, make())
    (store.folder(1) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000001: manifest.json is missing"):
        store.newest(quiet)
    assert store.folders() == [store.folder(1)]


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    store.save(1, make())
    (store.folder(1) / "manifest.json").write_bytes(b"")
    store.save(1, make(5))
    assert checkpoint.load(store.folder(1)).data["step"] == 5


class Failing:
    """Lets `os.write`, `os.fsync` or `os.rename` fail at its n-th call."""

    def __init__(self, function: str, at: int, monkeypatch: pytest.MonkeyPatch):
        self.calls, self._at, self._real = 0, at, getattr(os, function)
        monkeypatch.setattr(files, f"_{function}", self)

    def __call__(self, *arguments: object) -> object:
        self.calls += 1
        if self.calls == self._at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._real(*arguments)


@pytest.mark.parametrize("function", ["write", "fsync", "rename"])
def test_every_failing_call_leaves_a_loadable_checkpoint(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in itertools.count(1):
        store = Store(tmp_path / str(at), 1)
        store.save(1, make(1))
        failing = Failing(function, at, monkeypatch)
        try:
            store.save(2, make(2))
        except RunError as error:
            assert "No space left" in str(error)  # noqa: PT017
        monkeypatch.undo()
        found = store.newest(quiet)
        assert found is not None
        assert same(found, make(found.data["step"]))
        assert found.data["step"] == 2 or failing.calls >= at
        store.save(3, make(3))
        if failing.calls < at:
            assert at > 2
            break


@pytest.mark.parametrize("function", ["write", "fsync", "rename"])
def test_a_full_disk_stops_the_training_with_one_line(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"validate": toy.validation, "validate_every": 2, "max_steps": 6, "log_every_seconds": 0.0}
    toy.run(tmp_path / "whole", **options)
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for at in itertools.count(1, 4):
        out = tmp_path / str(at)
        failing = Failing(function, at, monkeypatch)
        try:
            toy.run(out, **options)
        except EverstepError as error:
            assert isinstance(error, RunError)  # noqa: PT017
            assert "free some space" in str(error)  # noqa: PT017
        monkeypatch.undo()
        if failing.calls < at:
            break
        toy.run(out, resume=True, **options)
        assert (out / "model.safetensors").read_bytes() == expected
        shutil.rmtree(out)


def test_the_disk_has_all_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def rename(source: Path, target: Path) -> None:
        done.append(f"{source.name} -> {target.name}")
        os.rename(source, target)

    monkeypatch.setattr(files, "_fsync", fsync)
    monkeypatch.setattr(files, "_rename", rename)
    checkpoint.save(tmp_path / "c", make())
    contents = ["model.safetensors", "carried.safetensors", "data.json", "manifest.json"]
    assert done == [*contents, ".tmp-c", ".tmp-c -> c", tmp_path.name]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_write", lambda descriptor, data: os.write(descriptor, data[:3]))
    files.write_file(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_left_overs_of_a_crash_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    (tmp_path / ".tmp-step-00000009").mkdir()
    (tmp_path / ".tmp-step-00000009" / "x").touch()
    store.clean()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        toy.run(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="cannot write"):
        Store(tmp_path / "file" / "checkpoints", 1).save(1, make())


def test_a_locked_run_is_refused_and_the_holder_named(tmp_path: Path) -> None:
    holder = """
import sys
from pathlib import Path
from everstep.storage.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            with pytest.raises(RunError, match=f"in use by another process .pid {process.pid}"):
                toy.run(tmp_path)
        finally:
            process.kill()
    toy.run(tmp_path)  # let go of by the system
    assert (tmp_path / ".lock").read_text() == f" {os.getpid()}\n"


def test_a_lock_that_does_not_work_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(RunError, match="No locks available"), RunLock(tmp_path):
        pass


def test_the_manifest_is_json(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", make(valid=1.5))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["valid"] == 1.5
    assert set(manifest["files"]) == {"model.safetensors", "carried.safetensors", "data.json"}

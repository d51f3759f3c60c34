"""A training in two processes: the gradient of one, exact resume, and what a lost process leaves."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_two
import learn_toy as toy
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everstep.data.batches import Batches, Divides, Share
from everstep.data.buckets import Buckets
from everstep.data.lanes import Lanes
from everstep.data.text.corpus import Corpus
from everstep.errors import ConfigError, RunError
from everstep.learn import heartbeat
from everstep.learn.heartbeat import Heartbeat
from everstep.learn.world import World, check_divisible

ALONE = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def begun(folder: Path, *stages: str) -> list[subprocess.Popen[str]]:
    """Two processes of `in_two.py`, as torchrun would start them, without its agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    command = [sys.executable, str(Path(in_two.__file__)), str(folder), *stages]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [subprocess.Popen(command, env={**shared, "RANK": rank}, text=True, **pipes) for rank in "01"]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found of `equal` and `resumed`."""
    folder = tmp_path_factory.mktemp("two") / "both"
    for process in begun(folder, "equal", "resumed"):
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, said + errors
    return folder


def test_two_processes_compute_the_gradient_of_one(together: Path, tmp_path: Path) -> None:
    in_two.equal(tmp_path)
    alone = load_file(tmp_path / "equal-0.safetensors")
    both = [load_file(together / f"equal-{rank}.safetensors") for rank in range(2)]
    assert len(alone) > 100
    for found in both:
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=lambda said, n=name: f"{n}: {said}")
    assert all(torch.equal(both[0][name], both[1][name]) for name in alone)


def test_a_run_resumes_bit_for_bit_with_as_many_processes(together: Path) -> None:
    one, other = (load_file(together / f"resumed-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    left = {path.name for path in (together / "halved").iterdir()}
    assert left == {".lock", "checkpoints", "metrics.jsonl", "model.safetensors"}
    with pytest.raises(RunError, match="processes: was 2, now 1"):
        toy.run(together / "halved", resume=True, max_steps=15, validate=toy.validation)


def test_a_killed_process_ends_the_other_which_names_the_last_checkpoint(tmp_path: Path) -> None:
    leader, other = begun(tmp_path / "run", "killed")
    other.communicate(timeout=60)
    assert other.returncode == -signal.SIGKILL
    since = time.monotonic()
    said, errors = leader.communicate(timeout=30)
    assert time.monotonic() - since < 15
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert f"the last checkpoint is {checkpoint}; go on with: GO ON" in said, said + errors
    assert checkpoint.is_dir()


class _Counts:
    """A store in this process; the counts of `stopped` do not grow."""

    def __init__(self, stopped: int) -> None:
        self.stopped, self.counts = f"beat/{stopped}", dict[str, int]()

    def add(self, key: str, number: int) -> int:
        grown = number or (key.startswith("beat") and key != self.stopped)
        self.counts[key] = self.counts.get(key, 0) + grown
        return self.counts[key]


def test_a_silent_process_ends_the_others(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, seconds in (("PERIOD", 0.02), ("SILENCE", 0.2), ("GRACE", 0.02)):
        monkeypatch.setattr(heartbeat, name, seconds)
    codes: list[int] = []
    store = _Counts(stopped=2)
    with Heartbeat(store, 0, 3, "lost: {}".format, codes.append):
        end = time.monotonic() + 20
        while not codes and time.monotonic() < end:
            time.sleep(0.01)
    assert codes == [2]
    assert "everstep: lost: 2\n" in capfd.readouterr().err
    follower: list[int] = []
    with Heartbeat(store, 1, 3, "lost: {}".format, follower.append):  # the leader has said so
        while not follower and time.monotonic() < end:
            time.sleep(0.01)
    assert follower == [2]
    assert "everstep: lost: 2\n" in capfd.readouterr().err
    living: list[int] = []
    with Heartbeat(_Counts(stopped=7), 0, 3, "lost: {}".format, living.append):
        time.sleep(0.5)
    assert not living


class _Pair(World):
    size = 2


class _Moving(nn.Module):
    def move(self, batch: Any, rate: float) -> Tensor:
        raise NotImplementedError


def test_what_several_processes_cannot_divide_is_refused() -> None:
    lanes, model = in_two.SharedLanes(), toy.Toy()
    check_divisible(_Pair(), model, lanes)
    check_divisible(World(), _Moving(), toy.Lanes())
    for given, batches, expected in (
        (_Moving(), lanes, "a _Moving changes its own weights"),
        (nn.Sequential(nn.Embedding(3, 2, sparse=True)), lanes, "those of 0 are sparse"),
        (model, toy.Lanes(), r"a method part\(epoch, index, share\).*; got Lanes"),
        (model, in_two.SharedLanes(rows=1), "train.batch_size: expected at least 2, a lane for each process; got 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            check_divisible(_Pair(), given, batches)


def of_each_kind() -> Iterator[Batches[Any]]:
    """Batches of every job that several processes can train."""
    corpus = Corpus(np.random.default_rng(0).integers(1, 9, 53), np.array([0, 7, 8, 30]))
    yield Lanes(corpus, 5, 3, 4, begin_id=0)
    yield Buckets(corpus, 3, begin_id=0)
    yield in_two.buckets()


@pytest.mark.parametrize("batches", list(of_each_kind()), ids=lambda batches: type(batches).__name__)
def test_the_shares_of_a_batch_are_its_rows(batches: Batches[Any]) -> None:
    assert isinstance(batches, Divides)
    for epoch, index in itertools.product(range(2), range(len(batches))):
        whole = batches.batch(epoch, index)
        parts = [batches.part(epoch, index, Share(rank, 3)) for rank in range(3)]
        assert sum(part.rows for part in parts if part is not None) == whole.rows
        assert sum(part.count for part in parts if part is not None) == whole.count
        for rank, part in enumerate(parts):
            if part is None:
                assert whole.rows <= rank
            else:
                steps = part.inputs.shape[1]
                assert torch.equal(part.inputs, whole.inputs[rank::3, :steps])
                assert not whole.inputs[rank::3, steps:].any()


TEXT = "the cat sat on the mat and the dog sat on the log\n" * 40


def test_torchrun_trains_a_recipe_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    clean = {key: value for key, value in os.environ.items() if key not in ALONE}

    def launched(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "everstep", *words]
        return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path, timeout=120)

    small = ["data.train=text.txt", "model.hidden_size=8", "train.max_steps=6", "train.batch_size=4", "objective.k1=8"]
    done = launched("train", "text-chars", *small, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done: 6 steps") == 1
    assert done.stdout.count("The trained model is in run") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} > {"scores.json", "README.md", "model.safetensors"}
    refused = launched("eval", "run")
    assert len(re.findall("eval runs in one process; got 2 of torchrun", refused.stderr)) == 1

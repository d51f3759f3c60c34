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
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import apart
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


def begun(act: Callable[..., object], given: object, told: Path) -> list[ForkServerProcess]:
    """Two processes that train together, as torchrun would start them, without its agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in "01":
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": rank}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in shared.items():
                patch.setenv(name, value)
            processes.append(apart.started(act, given, told=told))
    return processes


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that equal one, resume, and end together."""
    folder = tmp_path_factory.mktemp("two")
    codes = [apart.ended(process) for process in begun(in_two.all_three, folder, folder / "told.txt")]
    assert codes == [0, 0], (folder / "told.txt").read_text()
    return folder


def test_two_processes_compute_the_gradient_of_one(together: Path, tmp_path: Path) -> None:
    in_two.equal(tmp_path)
    in_two.sparse(tmp_path)
    alone = load_file(tmp_path / "equal-0.safetensors")
    both = [load_file(together / f"equal-{rank}.safetensors") for rank in range(2)]
    assert len(alone) > 100
    for found in both:
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=lambda said, n=name: f"{n}: {said}")
    assert all(torch.equal(both[0][name], both[1][name]) for name in alone)
    rows, *both = (
        load_file(folder / f"sparse-{r}.safetensors") for folder, r in ((tmp_path, 0), (together, 0), (together, 1))
    )
    assert len(rows) > 20
    for found in both:
        assert found.keys() == rows.keys()
        for name, value in rows.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
            assert torch.equal(found[name], both[0][name])


def test_a_run_resumes_bit_for_bit_with_as_many_processes(together: Path) -> None:
    one, other = (load_file(together / f"resumed-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    left = {path.name for path in (together / "halved").iterdir()}
    assert left == {".lock", "checkpoints", "metrics.jsonl", "model.safetensors"}
    with pytest.raises(RunError, match="processes: was 2, now 1"):
        toy.run(together / "halved", resume=True, max_steps=15, validate=toy.validation)


def test_a_killed_process_ends_the_other_which_names_the_last_checkpoint(tmp_path: Path) -> None:
    told, run = tmp_path / "told.txt", tmp_path / "run"
    leader, other = begun(in_two.killed, run, told)
    assert apart.ended(other) == -signal.SIGKILL
    since = time.monotonic()
    assert apart.ended(leader) == 1
    assert time.monotonic() - since < 15
    expected = f"the last checkpoint is {run}/checkpoints/step-00000004; go on with: GO ON"
    assert expected in told.read_text()
    assert (run / "checkpoints" / "step-00000004").is_dir()


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


SMALL = ["data.train=text.txt", "model.hidden_size=8", "train.batch_size=4", "objective.k1=8"]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`text.txt` in the working folder."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("text")
def test_train_is_the_only_verb_of_several_processes(tmp_path: Path) -> None:
    told = tmp_path / "told.txt"
    trained = begun(apart.command, ["train", "text-chars", *SMALL, "train.max_steps=6", "--out", "run"], told)
    assert [apart.ended(process) for process in trained] == [0, 0], told.read_text()
    assert told.read_text().count("done: 6 steps") == 1
    assert told.read_text().count("The trained model is in run") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} > {"scores.json", "README.md", "model.safetensors"}
    refused = tmp_path / "refused.txt"
    assert [apart.ended(process) for process in begun(apart.command, ["eval", "run"], refused)] == [2, 2]
    assert refused.read_text().count("eval runs in one process; got 2 of torchrun") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("text")
def test_torchrun_trains_and_a_process_that_it_loses_ends_the_others(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "everstep"]
    words = ["train", "text-chars", *SMALL, "train.max_epochs=100000", "train.max_minutes=5", "--out", "run"]
    with (tmp_path / "told.txt").open("w") as told:
        agent = subprocess.Popen([*launcher, *words, "train.checkpoint_every=10"], stderr=told)
    end = time.monotonic() + 100
    while not list(tmp_path.glob("run/checkpoints/step-*")):
        assert time.monotonic() < end
        time.sleep(0.1)
    leader = int((tmp_path / "run" / ".lock").read_text())
    listed = subprocess.run(["ps", "--ppid", str(agent.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    (other,) = {int(number) for number in listed.stdout.split()} - {leader}
    os.kill(other, signal.SIGKILL)
    since = time.monotonic()
    assert agent.wait(60) == 1
    assert time.monotonic() - since < 15
    said = (tmp_path / "told.txt").read_text()
    expected = (
        r"the last checkpoint is run/checkpoints/step-\d+; go on with: torchrun --nproc-per-node 2 -m everstep train "
    )
    assert re.search(expected + "--resume run", said), said

"""What the schedule goes by where steps, epochs and time limit a run, and what is told of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch

from everstep.learn import FitSettings, checkpoint, read_metrics
from everstep.learn.learner import Learner


class Clock:
    """Stands in for `time.monotonic`: seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def rates(clock: Clock, out: Path, seconds: list[float], **options: Any) -> tuple[list[float], list[str], str]:
    """The learning rate of each step, where step k ends at `seconds[k]`; what was said; and what ended the run."""

    def tick(model: torch.nn.Module, step: int) -> None:
        clock.now = seconds[step]

    clock.now, lines = 0.0, []
    common = {"schedule": "cosine", "learning_rate": 1.0, "optimizer": "sgd", "log_every_seconds": 0.0}
    result = toy.run(out, rules=[tick], log=lines.append, **common | options)
    records = read_metrics(out / "metrics.jsonl")
    return [record["learning_rate"] for record in records], lines, result.stopped_by


EVEN = [float(k + 1) for k in range(40)]
LATE = [5.0 + k for k in range(40)]  # the first step takes long, as compiling does


@pytest.mark.parametrize("limit", [{"max_steps": 20}, {"max_epochs": 3, "max_steps": None}])
def test_a_run_that_steps_end_is_the_same_whatever_the_clock(limit: Any, clock: Clock, tmp_path: Path) -> None:
    plain, _, _ = rates(clock, tmp_path / "plain", EVEN, **limit)
    for name, seconds in {"even": EVEN, "late": LATE, "fast": [k / 9 for k in EVEN]}.items():
        found, lines, ended = rates(clock, tmp_path / name, seconds, max_minutes=2.0, **limit)
        assert found == plain
        assert ended != "max_minutes"
        assert not any("clock" in line for line in lines)
        weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("plain", name)]
        assert weights[0] == weights[1]


def test_a_run_too_slow_for_its_steps_ends_in_time_with_its_schedule_done(clock: Clock, tmp_path: Path) -> None:
    found, lines, ended = rates(clock, tmp_path, EVEN, max_steps=1000, max_minutes=0.5)
    assert ended == "max_minutes"
    assert len(found) == 30
    assert found[-1] < 0.01
    assert sum("the schedule follows the clock from step 3" in line for line in lines) == 1  # a tenth of 30 s


def test_once_it_follows_the_clock_it_does_so_after_a_resume(clock: Clock, tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "cosine", "max_minutes": 1.0, "max_steps": 1000}
    learner = Learner(toy.Toy(), toy.objective, toy.Lanes(), FitSettings(**options))
    clock.now = 5.0
    learner.step()
    assert learner.progress == 1 / 1000
    clock.now = 30.0
    learner.step()
    assert learner.counts.clocked
    assert learner.progress == pytest.approx(0.5)
    toy.run(tmp_path, max_steps=2)
    newest = checkpoint.load(tmp_path / "checkpoints" / "step-00000002")
    assert newest.data["counts"]["clocked"] is False


def test_minutes_alone_are_the_clock(clock: Clock, tmp_path: Path) -> None:
    found, lines, ended = rates(clock, tmp_path, EVEN, max_steps=None, max_minutes=0.25)
    assert ended == "max_minutes"
    assert found[-1] < 0.02
    assert not any("from step" in line for line in lines)


def test_checkpoints_of_before_go_on(tmp_path: Path) -> None:
    toy.run(tmp_path, max_steps=6)
    folder = tmp_path / "checkpoints" / "step-00000006"
    found = checkpoint.load(folder)
    del found.data["counts"]["clocked"], found.data["recipe"]
    checkpoint.save(folder, found)
    assert toy.run(tmp_path, resume=True).steps == 12


# ------------------------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 5}, 5),
        ({"max_steps": 8}, 8),
        ({"max_epochs": 1, "max_steps": None}, 7),
        ({"max_epochs": 1, "accumulate": 3, "max_steps": None}, 3),
    ],
)
def test_a_warm_up_that_the_run_does_not_outlive_is_said(limits: Any, steps: int, tmp_path: Path) -> None:
    lines: list[str] = []
    toy.run(tmp_path / "long", warmup_steps=steps, log=lines.append, **limits)
    told = [line for line in lines if "warmup" in line]
    assert told == [
        f"warmup_steps={steps} is not over when this run of {steps} steps ends: the learning rate hardly reaches 0.01; "
        "set a lower warmup_steps"
    ]
    lines.clear()
    toy.run(tmp_path / "short", warmup_steps=steps - 1, log=lines.append, **limits)
    assert not any("warmup" in line for line in lines)


def test_a_warm_up_that_time_ends_is_said(clock: Clock, tmp_path: Path) -> None:
    _, lines, ended = rates(clock, tmp_path, EVEN, max_steps=None, max_minutes=0.25, warmup_steps=20)
    assert ended == "max_minutes"
    assert sum("warmup_steps=20 was not over when the run ended after 15 steps" in line for line in lines) == 1

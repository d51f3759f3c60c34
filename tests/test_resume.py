"""A run stopped anywhere and resumed is, bit for bit, the run that was not stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import learn_toy as toy
import numpy as np
import pytest
import torch
from torch import nn

from everstep.errors import CheckpointError, Interrupted, RunError
from everstep.learn import read_metrics
from everstep.learn.weights import weights_step

KILL = Path(__file__).parent.parent / "benchmarks" / "kill.py"

RECIPES: dict[str, dict[str, Any]] = {
    "adamw, ema, cosine, accumulated": {
        "averaging": "ema",
        "schedule": "cosine",
        "warmup_steps": 3,
        "accumulate": 2,
        "clip_norm": 0.5,
        "weight_decay": 0.1,
    },
    "sgd, nt-asgd": {"optimizer": "sgd", "momentum": 0.9, "averaging": "nt-asgd", "nt_asgd_patience": 1},
    "rmsprop, plateau": {"optimizer": "rmsprop", "schedule": "plateau", "learning_rate": 0.05, "momentum": 0.5},
    "adagrad, step, pieces": {
        "optimizer": "adagrad",
        "schedule": "step",
        "constant_epochs": 1,
        "objective": toy.pieces,
        "max_epochs": 2,
    },
    "bfloat16": {"precision": "bfloat16"},
}
COMMON = {"validate": toy.validation, "validate_every": 3, "checkpoint_every": 4, "max_steps": 14, "keep_last": 9}


def noise(model: nn.Module, step: int) -> None:
    """Draws from the other generators, so that they count."""
    model.out.bias.grad.add_(0.01 * random.random() + 0.01 * float(np.random.normal()))  # noqa: NPY002


def bits(out: Path) -> dict[str, bytes]:
    """What the end of a run is made of."""
    newest = max((out / "checkpoints").glob("step-*"))
    files = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    data = json.loads((newest / "data.json").read_text())
    del data["counts"]["seconds"], data["settings"]
    return {**files, "data": json.dumps(data).encode(), "final": (out / "model.safetensors").read_bytes()}


def interrupted(out: Path, at: int, resume: bool, **options: Any) -> None:
    """Run until step `at` and stop by a signal; `resume` goes on with what is there."""

    def ask(model: nn.Module, step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        toy.run(out, resume=resume, rules=[noise, ask], **options)


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_at_every_step_and_resumed(name: str, tmp_path: Path) -> None:
    options = COMMON | RECIPES[name]
    toy.run(tmp_path / "whole", rules=[noise], **options)
    expected = bits(tmp_path / "whole")
    out = tmp_path / "parts"
    for step in range(13):
        interrupted(out, step, resume=step > 0, **options)
    torch.manual_seed(99)
    random.seed(99)
    result = toy.run(out, resume=True, rules=[noise], model=toy.Toy(seed=9), **options)
    found = bits(out)
    assert result.steps == 14
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


def test_stopped_between_the_last_step_and_its_validation(tmp_path: Path) -> None:
    toy.run(tmp_path / "whole", rules=[noise], **COMMON)
    interrupted(tmp_path / "parts", 13, resume=False, **COMMON)
    result = toy.run(tmp_path / "parts", resume=True, **COMMON)
    assert result.best_step == weights_step(tmp_path / "whole" / "model.safetensors")
    assert bits(tmp_path / "parts")["final"] == bits(tmp_path / "whole")["final"]


class Crash(Exception):
    pass


def crashing(at: int) -> Any:
    def rule(model: nn.Module, step: int) -> None:
        noise(model, step)
        if step == at:
            raise Crash

    return rule


def test_crashed_between_checkpoints_and_resumed(tmp_path: Path) -> None:
    options = COMMON | {"averaging": "ema", "log_every_seconds": 0.0}
    toy.run(tmp_path / "whole", rules=[noise], **options)
    for step in range(14):
        out = tmp_path / str(step)
        with pytest.raises(Crash):
            toy.run(out, rules=[crashing(step)], **options)
        # Later validations than the checkpoint's have left their mark, which must not survive.
        lines: list[str] = []
        toy.run(out, resume=True, rules=[noise], log=lines.append, **options)
        assert bits(out) == bits(tmp_path / "whole")
        stories = [
            [(r["step"], "valid" in r) for r in read_metrics(p / "metrics.jsonl")] for p in (out, tmp_path / "whole")
        ]
        assert stories[0] == stories[1]
        assert any(("starting from the beginning" if step < 4 else "resuming after step") in line for line in lines)


def test_metrics_tell_one_story_after_damage(tmp_path: Path) -> None:
    toy.run(tmp_path, max_steps=6, checkpoint_every=2, log_every_seconds=0.0)
    path = tmp_path / "metrics.jsonl"
    for folder in sorted((tmp_path / "checkpoints").glob("step-*"))[1:]:
        (folder / "data.json").unlink()
    with path.open("ab") as file:
        file.write(b'7\n{"no": "step"}\n{"step": 7, "lo')
    lines: list[str] = []
    result = toy.run(tmp_path, max_steps=6, resume=True, log_every_seconds=0.0, log=lines.append)
    assert "data.json is missing" in lines[0]
    assert "resuming from step-00000004" in lines[0]
    assert result.steps == 6
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    first = toy.run(tmp_path, **COMMON)
    before = bits(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    again = toy.run(tmp_path, resume=True, **COMMON)
    assert bits(tmp_path) == before
    assert (again.steps, again.best_valid, again.stopped_by) == (first.steps, first.best_valid, first.stopped_by)
    assert again.metrics == {}


def test_a_finished_run_goes_on_with_a_higher_limit(tmp_path: Path) -> None:
    toy.run(tmp_path / "a", max_steps=14)
    toy.run(tmp_path / "b", max_steps=6)
    lines: list[str] = []
    assert toy.run(tmp_path / "b", resume=True, max_steps=14, log=lines.append).steps == 14
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert any("max_steps 6 -> 14" in line for line in lines)


def test_best_weights_that_are_lost_are_said_and_replaced(tmp_path: Path) -> None:
    options = COMMON | {"checkpoint_every": 4, "validate_every": 6}  # no checkpoint at the first validation
    interrupted(tmp_path, 8, resume=False, **options)
    assert weights_step(tmp_path / "model.safetensors") == 6
    (tmp_path / "model.safetensors").unlink()
    lines: list[str] = []
    result = toy.run(tmp_path, resume=True, log=lines.append, **options)
    assert any("the best weights (step 6) are lost" in line for line in lines)
    assert weights_step(tmp_path / "model.safetensors") == result.best_step


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    toy.run(tmp_path, identity={"corpus": "a1", "vocabulary": (1, 2)})
    more: dict[str, Any] = {"resume": True, "max_steps": 20}
    with pytest.raises(RunError, match="corpus: was 'a1', now 'b2'"):
        toy.run(tmp_path, identity={"corpus": "b2", "vocabulary": (1, 2)}, **more)
    with pytest.raises(RunError, match="vocabulary"):
        toy.run(tmp_path, identity={"corpus": "a1"}, **more)
    same: dict[str, Any] = {"identity": {"corpus": "a1", "vocabulary": [1, 2]}}
    with pytest.raises(RunError, match="batch size: was 4, now 2"):
        toy.run(tmp_path, batches=toy.Lanes(rows=2), **same, **more)
    with pytest.raises(RunError, match="batches an epoch: was 7, now 9"):
        toy.run(tmp_path, batches=toy.Lanes(number=9), **same, **more)
    with pytest.raises(RunError, match=r"corpus: was 'a1', now 'f0f0f0f0f0f…';"):
        toy.run(tmp_path, identity={"corpus": "f0" * 32, "vocabulary": (1, 2)}, **more)
    wider = toy.Toy()
    wider.out.bias = nn.Parameter(torch.zeros(12))
    with pytest.raises(RunError, match=r"'out.bias' is \(11,\) in the checkpoint and \(12,\) in the model"):
        toy.run(tmp_path, model=wider, **same, **more)
    wider = toy.Toy()
    wider.extra = nn.Linear(1, 1)
    with pytest.raises(RunError, match=r"the model has 'extra.weight', which the checkpoint lacks"):
        toy.run(tmp_path, model=wider, **same, **more)

    def other_state(model: nn.Module, batch: Any, state: Any) -> Any:
        for loss in toy.objective(model, batch, None):
            yield loss._replace(state={"lstm": loss.state["gru"]})

    with pytest.raises(RunError, match=r"carries a state of \['gru.0'\], the model has \['lstm.0'\]"):
        toy.run(tmp_path, objective=other_state, **same, **more)
    assert toy.run(tmp_path, **same, **more).steps == 20


def test_damage_everywhere_is_an_error(tmp_path: Path) -> None:
    toy.run(tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        toy.run(tmp_path, resume=True)


def test_another_number_of_threads_is_said(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    toy.run(tmp_path)
    lines: list[str] = []
    try:
        torch.set_num_threads(threads + 1)
        toy.run(tmp_path, resume=True, log=lines.append)
    finally:
        torch.set_num_threads(threads)
    assert any(f"resuming with {threads + 1} threads a run of {threads}" in line for line in lines)


@pytest.mark.slow
def test_killed_at_random_moments() -> None:
    done = subprocess.run([sys.executable, str(KILL), "--kills", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 equal" in done.stdout

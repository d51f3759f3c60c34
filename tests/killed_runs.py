"""The law that a run killed in its middle and resumed ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apart
import torch
from safetensors.torch import load_file

import everstep as es
from everstep.learn import learner
from everstep.runs.training import resume


def quietly(line: str) -> None:
    del line


def _train_until_killed(recipe: str, out: Path, settings: Sequence[str], after: int) -> None:
    step, count = learner.Learner.step, 0

    def counted(self: Any, *given: Any, **options: Any) -> Any:
        nonlocal count
        found = step(self, *given, **options)
        count += 1
        if count == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    learner.Learner.step = counted  # type: ignore[method-assign]
    es.train(recipe, out, print, overrides=settings)


def killed_and_resumed(recipe: Path | str, folder: Path, settings: Sequence[str], after: int) -> es.Run:
    """Train by a recipe in one go, and again killed after so many steps and resumed: the latter, of the same bits."""
    whole = es.train(recipe, folder / "whole", quietly, overrides=settings)
    told = folder / "told.txt"
    given = (str(recipe), folder / "killed", settings, after)
    ended = apart.ended(apart.started(_train_until_killed, *given, told=told))
    assert ended == -signal.SIGKILL, told.read_text()
    assert not (folder / "killed" / "scores.json").exists()
    said: list[str] = []
    again = resume(folder / "killed", said.append)
    assert any(line.startswith("resuming after step ") for line in said), said  # begun anew, its bits are the same
    one, other = (load_file(folder / name / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.evaluate("valid") == whole.evaluate("valid")
    return again

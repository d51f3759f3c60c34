"""Runs that are killed in their middle and resumed."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apart

import everstep as es
from everstep.learn import learner
from everstep.runs.training import resume


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


def killed_and_resumed(recipe: Path | str, out: Path, settings: Sequence[str], after: int) -> es.Run:
    """A run of a recipe that was killed after so many steps, and resumed."""
    told = out.with_suffix(".told")
    ended = apart.ended(apart.started(_train_until_killed, str(recipe), out, settings, after, told=told))
    assert ended == -signal.SIGKILL, told.read_text()
    assert not (out / "scores.json").exists()
    said: list[str] = []
    again = resume(out, said.append)
    assert any(line.startswith("resuming after step ") for line in said), said  # begun anew, its bits are the same
    return again

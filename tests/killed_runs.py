"""The law that a run killed in its middle and resumed ends with the bits of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

import everstep as es
from everstep.runs.training import resume

KILLED = """
import os, signal, sys
import everstep as es
from everstep.learn import learner
step, count = learner.Learner.step, 0
def counted(self, *given, **options):
    global count
    found = step(self, *given, **options)
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return found
learner.Learner.step = counted
es.train(sys.argv[1], sys.argv[2], print, overrides=sys.argv[4:])
"""


def quietly(line: str) -> None:
    del line


def killed_and_resumed(recipe: Path, folder: Path, settings: Sequence[str], after: int) -> es.Run:
    """Train by a recipe in one go, and again killed after so many steps and resumed: the latter, of the same bits."""
    whole = es.train(recipe, folder / "whole", quietly, overrides=settings)
    command = [sys.executable, "-c", KILLED, str(recipe), str(folder / "killed"), str(after), *settings]
    ended = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (folder / "killed" / "scores.json").exists()
    again = resume(folder / "killed", quietly)
    one, other = (load_file(folder / name / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.evaluate("valid") == whole.evaluate("valid")
    return again

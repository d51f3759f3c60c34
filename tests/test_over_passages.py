"""Every picture of `look/over_passages/` is found, drawn, and has a sentence under it."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from untrained import untrained

from everstep.look import over_passages
from everstep.runs.pictures import draw_over, drawers
from everstep.runs.run import Run

FILES = [module.name for module in pkgutil.iter_modules(over_passages.__path__)]
SMALL = {"landscape": {"SIDE": 3}, "memory_pictures": {"LAGS": 10, "LONGEST": 10, "TARGETS": 8, "STEPS": 10}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.manual_seed(0)
    return untrained(
        tmp_path_factory.mktemp("run"), "shakespeare-minute", "model.embedding_size=4", "model.hidden_size=4"
    )


def test_those_that_read_least_are_drawn_first() -> None:
    found = [drawer.args[0] for drawer in drawers() if hasattr(drawer, "args")]  # type: ignore[attr-defined]
    assert [module.__name__.rpartition(".")[2] for module in found] == sorted(
        FILES, key=lambda name: import_module(f"{over_passages.__name__}.{name}").CHARACTERS
    )


@pytest.mark.parametrize("name", FILES)
def test_each_is_drawn_with_a_sentence(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture: Any = import_module(f"{over_passages.__name__}.{name}")
    for constant, value in SMALL.get(name, {}).items():
        monkeypatch.setattr(picture, constant, value)
    drawn = draw_over(picture, run, tmp_path, "To be, or not to be: that is the question.\n" * 3)
    assert drawn
    assert len({path for path, _ in drawn}) == len(drawn)
    for path, sentence in drawn:
        assert path.parent == tmp_path
        assert path.stat().st_size > 100
        assert sentence.endswith(".")

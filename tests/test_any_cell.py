"""Any exported cell in any recipe: trained, evaluated, drawn from step by step and compiled; wrong names are told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import cache_in

import everstep as es
from everstep.errors import ConfigError
from everstep.networks import streaming
from everstep.networks.cells_by_name import cell_names
from everstep.networks.streaming import StreamedStep
from everstep.runs.recipe_files import load_task
from everstep.state import leaves

OPTIONS = {
    "ProjectedLSTM": "{type: ProjectedLSTM, proj_size: 2}",
    "ExpressionCell": "[tanh, [add, x, h]]",
    "TauGRU": "{type: TauGRU, delay: 2}",
}
QUICK = ("LSTM", "RHN", "ProjectedLSTM", "TauGRU", "ExpressionCell", "IntersectionRNN")
# the sizes of the laws, so that what they compile serves here too
TINY = ["model.embedding_size=3", "model.hidden_size=4", "train.batch_size=4", "objective.k1=16", "train.max_steps=2"]
FREE = ["train.max_epochs=null", "train.max_minutes=null", "train.warmup_steps=0"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text("What say you to that? I say nothing, and so it goes.\n" * 60)
    return path


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in cell_names()]
)
def test_every_exported_cell_is_trained_scored_and_drawn_from(
    name: str, text: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", cache_in(tmp_path_factory.getbasetemp()))
    changes = [*TINY, *FREE, f"data.train={text}", f"model.cell={OPTIONS.get(name, name)}"]
    with monkeypatch.context() as patch:
        if name not in QUICK:  # the laws hold each compiled cell to PyTorch's loop
            patch.setenv("EVERSTEP_COMPILER", "none")
        run = es.train("text-chars", tmp_path / "run", lambda _: None, overrides=changes)
        assert 0 < run.evaluate("valid")["loss"] < math.inf  # IRNN, Accumulator: after two updates they sum without end
        assert len(run.generate(prompt="What", length=8, seed=1)) >= 12
        loaded = es.load(tmp_path / "run")
        assert loaded.evaluate("valid") == run.evaluate("valid")
    if name not in QUICK:
        monkeypatch.setattr(streaming, "WARM", 4)
    follows(run.model)


@torch.inference_mode()
def follows(model: Any) -> None:
    """The compiled step goes on where PyTorch's stood, in any nest of states, and agrees with it."""
    step, state, other = StreamedStep(model), model.initial_state(2), model.initial_state(2)
    for t in range(streaming.WARM + 4):
        tokens = torch.tensor([t % 7, (3 * t) % 7])
        log_p, state = step(tokens, state)
        wanted, other = model.step(tokens, other)
        torch.testing.assert_close(log_p, wanted, rtol=1e-4, atol=1e-4)
    for (path, leaf), (place, expected) in zip(leaves(state), leaves(other), strict=True):
        assert path == place
        torch.testing.assert_close(leaf, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("Lstm", "there is no cell 'Lstm'; did you mean LSTM?"),
        ("xyz", "expected one of ATR, "),
        ("{type: RHN, depht: 2}", "Did you mean depth?"),
        ("{type: GRU, activaton: relu}", "Did you mean activation?"),
        ("{type: GRU, activation: save}", "expected activation to be one of tanh, sigmoid, relu"),
        ("{type: GRU, activation: 3}", "expected activation to be one of"),
        ("{type: JANET, colour: 1}", "JANET(3, 4, colour=1) fails"),
        ("ProjectedLSTM", "'proj_size'"),
        ("{depth: 3}", "got no type"),
    ],
)
def test_cells_and_options_that_there_are_not(cell: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task("text-chars", [*TINY, f"model.cell={cell}"])
    assert said in str(caught.value)


def test_functions_are_options_by_name() -> None:
    task: Any = load_task("text-chars", [*TINY, "model.cell={type: GRU, activation: relu}"])
    assert task.recipe.model.cell == {"type": "GRU", "activation": "relu"}
    body = es.stack_of(task.recipe.model, 8, task.code.find)
    assert next(cell for cell in body.sublayers() if isinstance(cell, es.GRU)).options["activation"] is torch.relu

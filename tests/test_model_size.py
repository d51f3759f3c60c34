"""A model that no memory holds is refused before anything of it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

import everstep as es
from everstep.errors import ConfigError
from everstep.tasks import language_model
from everstep.tasks.config import ModelConfig, load_recipe
from everstep.tasks.language_model import CELLS, LanguageModel


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 10**9},
        {"hidden_size": 10**30},
        {"hidden_size": (10**9, 2), "layers": 2},
        {"embedding_size": 10**12},
        {"hidden_size": 30_000, "layers": 1000},
    ],
)
@pytest.mark.parametrize("cell", [*CELLS, ("tanh", ("add", "x", "h"))])
def test_a_model_too_large_for_any_machine_is_refused(options: dict[str, object], cell: object) -> None:
    with pytest.raises(ConfigError, match=r"model: at least [0-9,]+ parameters, .* do not fit into .* lower model"):
        LanguageModel(10, ModelConfig.model_construct(**{**ModelConfig().model_dump(), "cell": cell, **options}))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_bound_is_what_the_matrices_take(cell: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(cell=cell, embedding_size=12, hidden_size=(8, 20), layers=2, tied=tied)
    made = LanguageModel(30, config)
    matrices = sum(p.numel() for name, p in made.named_parameters() if p.ndim == 2 and "project" not in name)
    needed = matrices if not tied else 30 * 12 + sum(p.numel() for p in made.body.parameters() if p.ndim == 2)
    monkeypatch.setattr(language_model, "_memory", lambda: 4 * needed)
    LanguageModel(30, config)
    monkeypatch.setattr(language_model, "_memory", lambda: 4 * needed - 1)
    with pytest.raises(ConfigError, match=f"at least {needed:,} parameters"):
        LanguageModel(30, config)


def test_layers_are_counted_before_they_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {layers: 1000000000}\ntrain: {max_steps: 1}\n")
    with pytest.raises(ConfigError, match=r"model\.layers: expected a whole number ≥ 1 and ≤ 1,000"):
        load_recipe(path)


def test_a_recipe_of_such_a_model_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 300)
    overrides = [f"data.train={tmp_path / 'text.txt'}", "model.hidden_size=1000000000", "train.max_steps=1"]
    with pytest.raises(ConfigError, match="do not fit"):
        es.train("shakespeare-minute", tmp_path / "run", lambda line: None, overrides=overrides)
    assert not (tmp_path / "run").exists()

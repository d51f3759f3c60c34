"""A model that no memory holds is refused before anything of it is made."""

from __future__ import annotations

from typing import Any

import pytest
from untrained import untrained

from everstep.errors import ConfigError
from everstep.networks.cells_by_name import cell_names
from everstep.runs import model_size
from everstep.runs.model_size import check_fits
from everstep.runs.recipe_files import load_recipe, load_task

SMALL = ("model.hidden_size=12", "model.embedding_size=12")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.hidden_size=1000000000", "model.hidden_size: expected a whole number ≥ 1 and ≤ 1,048,576"),
        ("model.hidden_size=[1000000000, 2]", "model.hidden_size: expected a whole number ≥ 1 and ≤ 1,048,576"),
        ("model.embedding_size=1000000000000", "model.embedding_size: expected a whole number ≥ 1 and ≤ 1,048,576"),
        ("model.layers=1000000000", "model.layers: expected a whole number ≥ 1 and ≤ 1,000"),
    ],
)
def test_sizes_have_bounds(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("shakespeare-minute", [override])
    assert said in str(caught.value)


@pytest.mark.parametrize("cell", ["LSTM", "MinGRU", "RGLRU", "[tanh, [add, x, h]]", "{type: RHN, depth: 2}"])
@pytest.mark.parametrize("size", ["model.hidden_size=1000000", "model.hidden_size=200000"])
def test_a_model_too_large_for_this_machine_is_refused(tmp_path: Any, cell: str, size: str) -> None:
    task: Any = load_task("shakespeare-minute", ["model.layers=30", f"model.cell={cell}", size])
    task.tokenizer = type("Vocabulary", (), {"vocab_size": 10**6, "eos_id": None})()
    with pytest.raises(ConfigError, match=r"^model: .*Lower model\.hidden_size, model\.layers"):
        check_fits(task)


def test_the_bound_is_what_the_weights_take(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = None
    for cell in cell_names():
        if cell in ("ProjectedLSTM", "ExpressionCell"):  # they need an option
            continue
        run = untrained(tmp_path, "shakespeare-minute", *SMALL, f"model.cell={cell}", tokenizer=tokenizer)
        tokenizer = run.task.tokenizer
        needed = sum(parameter.numel() * parameter.element_size() for parameter in run.model.parameters())
        monkeypatch.setattr(model_size, "memory", lambda needed=needed: needed)
        check_fits(run.task)
        monkeypatch.setattr(model_size, "memory", lambda needed=needed: needed - 1)
        with pytest.raises(ConfigError, match=f"{needed // 4:,} parameters"):
            check_fits(run.task)

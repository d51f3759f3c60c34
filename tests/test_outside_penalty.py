"""A penalty of O when tags are predicted: the model's distribution over sequences, tilted against O."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tagging import BOTH, QUICK, TEXT, quietly, recipe

import everstep as es
from everstep.data.readers.tagged_columns import Sentence
from everstep.data.tagged_batches import TaggedBatches
from everstep.errors import ConfigError
from everstep.runs.recipe_files import load_task


def task_of(folder: Path, *overrides: str, data: str = "") -> Any:
    task: Any = load_task(recipe(folder, TEXT, data), [*QUICK, *overrides])
    task.prepare()
    return task


@pytest.mark.parametrize("head", ["crf", "softmax"])
@pytest.mark.parametrize("penalty", [1.5, -0.7])
def test_it_tilts_the_distribution_over_sequences(head: str, penalty: float, tmp_path: Path) -> None:
    task = task_of(tmp_path, f"model.head={head}", f"decode.outside_penalty={penalty}")
    torch.manual_seed(0)
    model = task.model().double().eval()
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    tags = task.learned.columns[0].tags
    sentence = task.texts.examples("train").sentences[0]
    coded = task.learned.coded([Sentence(sentence.words[:3], (), ())])
    batch = TaggedBatches(coded, 1, shuffle=False).batch(0, 0)
    (found,) = model.decode(batch, n_best=4, marginals=True)
    every = torch.tensor(list(product(range(len(tags)), repeat=3)))
    with torch.no_grad():
        ys = model(batch).expand(len(every), -1, -1)
        log_p = -model.heads[0].loss(ys, every) if head == "softmax" else all_of_crf(model.heads[0], ys[:1], every)
        log_p = (log_p - penalty * (every == tags.index("O")).sum(1)).log_softmax(0)
    best = log_p.topk(4)
    assert torch.equal(found.tags[0], every[best.indices])
    torch.testing.assert_close(found.log_p[0], best.values, rtol=0, atol=1e-6)
    p = torch.stack([log_p.exp()[every[:, word] == tag].sum() for word in range(3) for tag in range(len(tags))])
    torch.testing.assert_close(found.marginals[0].flatten(), p, rtol=0, atol=1e-6)
    (plain,) = model.decode(batch)
    assert torch.equal(plain.tags[0, 0], every[best.indices[0]])


def all_of_crf(head: es.CRF, ys: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
    """log p of all sequences, −∞ where the scheme forbids one, which `loss` refuses."""
    scores, allowed = head.scores(ys)[0], head.allowed_transitions
    assert allowed is not None
    found = []
    for a, b, c in every.tolist():
        there = allowed[a, b] and allowed[b, c] and head.allowed_start[a] and head.allowed_end[c]  # type: ignore[index]
        total = head.start[a] + head.transitions[a, b] + head.transitions[b, c] + head.end[c]
        total = total + scores[0, a] + scores[1, b] + scores[2, c]
        found.append(total if there else total - torch.inf)
    return torch.stack(found)


def test_what_it_does_at_either_end_and_where_it_does_not_belong(tmp_path: Path) -> None:
    path = recipe(tmp_path, TEXT)
    run = es.train(path, tmp_path / "run", quietly, overrides=[*QUICK, "decode.outside_penalty=100"])
    loss = run.evaluate("valid")["loss"]
    assert all(tag != "O" for found in run.predict(["Anna", "saw", "Oslo", "."]) for tag in found.record["tags"])
    recipe_file = run.path / "config.yaml"
    assert "outside_penalty: 100" in recipe_file.read_text()
    recipe_file.write_text(recipe_file.read_text().replace("outside_penalty: 100", "outside_penalty: -100"))
    again = es.load(run.path)  # free to change after training
    assert [found.record["tags"] for found in again.predict(["Anna", "saw", "Oslo", "."])] == [["O"] * 4]
    assert again.evaluate("valid")["loss"] == loss
    with pytest.raises(ConfigError, match=r"decode\.outside_penalty: expected 0 where no column has tags of spans"):
        task_of(tmp_path, "decode.outside_penalty=1", data="  tag_column: 1\n").ready(quietly)
    task_of(tmp_path, "decode.outside_penalty=1", data=BOTH).ready(quietly)

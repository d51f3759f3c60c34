"""Every softmax that a recipe can name, in a language model and in a translator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as es
from everstep.errors import ConfigError
from everstep.networks.softmax_by_name import SoftmaxSection
from everstep.runs.recipe_files import load_recipe

pytestmark = pytest.mark.usefixtures("little_data_module")
SIZES = ["model.hidden_size=10", "model.embedding_size=10", "train.max_epochs=null", "train.max_minutes=null"]
OPTIONS = {
    "full": [],
    "adaptive": ["model.cutoffs=[20, 60]"],
    "sampled": ["model.samples=30"],
    "nce": ["model.samples=30"],
    "blackout": ["model.samples=30", "model.sample_power=0.4"],
    "classes": ["model.word_classes=5"],
    "mixture": ["model.mixtures=2"],
}


def trained(out: Path, name: str, *overrides: str) -> Any:
    given = [*SIZES, "data.max_size=200", "data.valid_fraction=0.02", "train.max_steps=3", "train.batch_size=8"]
    given += [f"model.softmax={name}", *OPTIONS[name], *overrides]
    return es.train("text-words", out, lambda _: None, overrides=given)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_language_model_with_each(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", name, "model.tied=true", "model.sparse=true")
    found = run.evaluate("valid")
    assert found["perplexity"] < 250
    assert ("log_z_rms" in found) == (name == "nce")
    again = es.load(tmp_path / "run")
    line = run.score(["to be or not to be"])[0]
    assert again.score(["to be or not to be"])[0].logp == line.logp
    assert math.isfinite(line.logp)
    assert again.evaluate("valid")["nats_per_token"] == pytest.approx(found["nats_per_token"], rel=1e-6)
    assert run.generate("to", 5, 1.0, seed=1) == again.generate("to", 5, 1.0, seed=1)


@pytest.mark.parametrize("name", ["sampled", "classes", "adaptive"])
def test_counts_come_from_the_training_text(name: str, tmp_path: Path) -> None:
    head = trained(tmp_path / "run", name).model.head
    if name == "sampled":
        p = head.proposal.log_q.exp()
        assert p.max() > 10 * p.min()
        assert p.sum().item() == pytest.approx(1, abs=1e-4)
    elif name == "classes":
        assert len(head.group.unique()) == 5
        assert torch.bincount(head.group).tolist() == sorted(torch.bincount(head.group).tolist())
    else:
        assert head.cutoffs == (20, 60)
        assert sorted(head.rank.tolist()) == list(range(200))


@pytest.mark.parametrize("name", ["nce", "adaptive"])
def test_resumed_is_as_trained_at_once(name: str, tmp_path: Path) -> None:
    more = ["model.sparse=true", "train.validate_every=2", "train.schedule=constant"]
    whole = trained(tmp_path / "whole", name, *more, "train.max_steps=4")
    part = tmp_path / "part"
    trained(part, name, *more, "train.max_steps=2")
    resumed = es.resume(part, lambda _: None, overrides=["train.max_steps=4"])
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adaptive", "sampled", "mixture"])
def test_a_translator_with_each(name: str, tmp_path: Path) -> None:
    given = ["model.hidden_size=8", "model.embedding_size=8", "train.max_minutes=null", "train.max_steps=2"]
    given += [f"model.softmax={name}", *OPTIONS[name], "objective.label_smoothing=0", "train.validate_every=null"]
    given += ["train.max_epochs=null", "data.test=null", "decode.beam_width=2", "decode.max_length=5"]
    run = es.train("translate-minute", tmp_path / "run", lambda _: None, overrides=given)
    assert len(list(run.predict(["Hello ."]))) == 1
    assert run.score(["Hello .\tBonjour ."])[0].logp < 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.samples=9"], "model.samples: expected softmax sampled or nce or blackout beside it; got full"),
        (["model.softmax=adaptive", "model.cutoffs=[9, 5]"], r"model.cutoffs: expected rising numbers; got \[9, 5\]"),
        (
            ["model.softmax=nce", "objective.label_smoothing=0.1"],
            "label_smoothing: expected 0 where model.softmax is nce",
        ),
        (["model.softmax=adaptve"], "did you mean adaptive"),
    ],
)
def test_options_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("text-words", overrides)


def test_cutoffs_above_the_vocabulary_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.softmax: AdaptiveSoftmax: expected rising cut-offs within 1 … 199"):
        trained(tmp_path / "run", "adaptive", "model.cutoffs=[50, 5000]")
    with pytest.raises(ConfigError, match=r"model.tied: expected embedding_size = hidden_size where .*; got 10 and 12"):
        trained(tmp_path / "run", "adaptive", "model.tied=true", "model.hidden_size=12")
    assert not (tmp_path / "run").exists()


def test_which_embeddings_are_sparse() -> None:
    for name, tied, wanted in [
        ("full", False, True),
        ("full", True, False),
        ("nce", True, True),
        ("classes", True, True),
    ]:
        assert SoftmaxSection(softmax=name, sparse=True).sparse_embedding(tied) == wanted
    assert not SoftmaxSection(softmax="nce").sparse_embedding(False)


@pytest.mark.parametrize("override", ["train.optimizer=rmsprop", "train.l2=0.1"])
def test_what_sparse_gradients_do_not_go_with_is_refused_before_training(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="because the gradients of embedding are sparse"):
        trained(tmp_path / "run", "nce", "model.sparse=true", override)
    assert not (tmp_path / "run").exists()

"""Continuous caches and dynamic evaluation, against their definitions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import everstep as es
from everstep.data import Corpus, Lanes
from everstep.errors import RunError
from everstep.networks.continuous_cache import cached_probabilities
from everstep.networks.dynamic_evaluation import DynamicRule, dynamic_nats, mean_squares
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection

IDS = np.random.default_rng(0).integers(0, 7, 90)


@pytest.fixture
def model() -> TokenModel:
    return TokenModel(7, TokenModelSection(cell="GRU", embedding_size=5, hidden_size=6)).eval()


def lanes(window: int) -> Lanes:
    return Lanes(Corpus(IDS, np.array([0])), 1, window, begin_id=0, shuffle=False)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("size", [1, 8, 200])
def test_a_cache_is_its_definition_whatever_the_windows(model: TokenModel, size: int) -> None:
    plain, caches = cached_probabilities(model, lanes(16), size, (0.3, 2.0))
    inputs = torch.tensor([[0, *IDS[:-1]]])
    with torch.no_grad():
        ys = model(inputs)[0][0].double()
        log_p = model.head.predict(model(inputs)[0])[0]
    np.testing.assert_allclose(np.log(plain), log_p[torch.arange(90), torch.tensor(IDS)], rtol=1e-4)
    for theta, cache in zip((0.3, 2.0), caches, strict=True):
        assert cache[0] == 0
        for t in range(1, 90):
            past = range(max(0, t - size), t)
            weights = torch.stack([(theta * ys[t] @ ys[i]).exp() for i in past])
            same = torch.tensor([float(IDS[i] == IDS[t]) for i in past], dtype=torch.float64)
            assert cache[t] == pytest.approx(float((weights * same).sum() / weights.sum()), rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("sparse", [False, True])
def test_dynamic_evaluation_without_a_rate_is_the_model(model: TokenModel, sparse: bool) -> None:
    model.embedding.sparse = sparse
    rms = mean_squares(model, lanes(16), 5)
    nats, count = dynamic_nats(model, lanes(16), rms, DynamicRule(0.0, 0.02, 5))
    plain, _ = cached_probabilities(model, lanes(16), 1, (1.0,))
    assert count == 90
    assert nats == pytest.approx(-np.log(plain).sum(), rel=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_gradients_in_training_are_of_targets_alone(model: TokenModel) -> None:
    corpus = Corpus(IDS, np.array([0]))
    longer, plain = (Lanes(corpus, 2, 15, k2, seed=0, begin_id=0) for k2 in (30, None))
    assert longer.batch(0, 1).context == 15
    found = mean_squares(model, longer, 5)
    for ours, theirs in zip(found, mean_squares(model, plain, 5), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(parameter.grad is None for parameter in model.parameters())
    smoothed = TokenModel(7, TokenModelSection(cell="GRU", embedding_size=5, hidden_size=6), label_smoothing=0.3)
    smoothed.load_state_dict(model.state_dict())
    for ours, theirs in zip(mean_squares(smoothed, plain, 5), mean_squares(model, plain, 5), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("uncompiled")
def test_an_update_is_that_of_its_rule(model: TokenModel) -> None:
    before = copy.deepcopy(model.state_dict())
    rms = mean_squares(model, lanes(16), 5)
    seen = []

    def watched(net: TokenModel, given: object) -> None:
        seen.append(copy.deepcopy(dict(net.named_parameters())))

    model.register_forward_pre_hook(watched)
    dynamic_nats(model, lanes(16), rms, DynamicRule(0.01, 0.5, 16), most=48)
    assert len(seen) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    other, gradients, state = copy.deepcopy(model), [], None
    other.load_state_dict({name: value.detach() for name, value in seen[0].items()})
    mean = sum(float(part.sum()) for part in rms) / sum(part.numel() for part in rms)
    for step in range(2):
        other.zero_grad()
        (loss,) = likelihood()(other, lanes(16).batch(0, step), state)
        (loss.total.sum() / 16).backward()
        state = loss.state.detach() if isinstance(loss.state, torch.Tensor) else es.state.detach(loss.state)
        gradients.append([parameter.grad for parameter in other.parameters()])
        with torch.no_grad():
            for parameter, part, start in zip(other.parameters(), rms, seen[0].values(), strict=True):
                pull = (0.5 * part / mean).clamp_max(1)
                parameter += pull * (start - parameter) - 0.01 * parameter.grad / (part + 0.001)
        for ours, theirs in zip(other.parameters(), seen[step + 1].values(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("own_cache", "uncompiled")
def test_runs_are_evaluated_while_they_adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everstep.runs import adapted

    monkeypatch.setattr(adapted, "RATES", (0.001, 0.002))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {noun} met the {noun} and\n" * 4 for noun in ("cat", "dog", "owl", "fox", "hen") * 4))
    small = ["model.hidden_size=8", "model.embedding_size=8", "train.max_steps=3", f"data.train={text}"]
    run = es.train("text-words", tmp_path / "run", log=lambda line: None, overrides=[*small, "data.min_count=1"])
    alone = run.evaluate("valid")
    cached, learned = run.evaluate("valid", adapt="cache"), run.evaluate("valid", adapt="dynamic")
    assert "continuous cache of 500 tokens" in cached["adapted"]
    assert "dynamic evaluation, rate" in learned["adapted"]
    assert cached["unknown_share"] == alone["unknown_share"]
    assert cached["perplexity"] < alone["perplexity"]
    assert learned["perplexity"] < alone["perplexity"]
    assert cached["tokens"] == learned["tokens"] == alone["tokens"]
    assert run.evaluate("valid") == alone
    rivals = run.rivals("valid")
    assert [rival["name"] for rival in rivals] == ["Kneser-Ney, order 3", "Kneser-Ney, order 5"]
    counts = es.train("kneser-ney", tmp_path / "counts", log=lambda line: None, overrides=_counts(text))
    assert rivals[1]["perplexity"] == pytest.approx(counts.evaluate("valid")["perplexity"], rel=1e-6)
    lines = [*small, "data.sequence=lines", "data.min_count=1"]
    other = es.train("text-words", tmp_path / "lines", log=lambda line: None, overrides=lines)
    with pytest.raises(RunError, match=r"data.sequence should be stream"):
        other.evaluate("valid", adapt="cache")


def _counts(text: Path) -> list[str]:
    """n-grams of the same tokens."""
    return [f"data.train={text}", "data.sequence=stream", "data.eos=true", "data.min_count=1", "model.order=5"]


@pytest.mark.usefixtures("own_cache", "uncompiled")
def test_a_softmax_that_samples_keeps_what_it_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everstep.runs import adapted

    monkeypatch.setattr(adapted, "RATES", (0.001,))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {noun} met the {noun} and\n" * 4 for noun in ("cat", "dog", "owl", "fox", "hen") * 4))
    given = ["model.hidden_size=8", "model.embedding_size=8", "model.softmax=nce", "model.samples=5"]
    given += ["train.max_steps=3", "train.learning_rate=0.1", f"data.train={text}", "data.min_count=1"]
    run = es.train("text-words", tmp_path / "run", log=lambda line: None, overrides=given)
    learned = copy.deepcopy(run.model.state_dict())
    run.evaluate("valid", adapt="dynamic")
    assert all(torch.equal(value, learned[name]) for name, value in run.model.state_dict().items())

"""Penalties and dropouts against their formulas, and the recipe keys that ask for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.data.batches import TokenBatch
from everstep.errors import ConfigError
from everstep.learn import fit
from everstep.learn.regularisers import activation_penalty, change_penalty, l2
from everstep.learn.update_rules import update_rules
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.runs.recipe_files import load_recipe, parse_recipe
from everstep.tasks.language_model import LanguageModelRecipe
from everstep.wirings import EmbeddingDropout, StateDropout
from everstep.wirings.masks import dropout_mask
from tests.laws import refused

B, T, D, H = 4, 7, 3, 5
F64 = torch.float64

# ------------------------------------------------------------------------------------------------------------- weights


def test_l2_adds_exactly_lambda_w_to_what_is_chosen() -> None:
    model = nn.Sequential(es.LSTM(3, 4), nn.Linear(4, 2)).double()
    model[1].bias.requires_grad_(False)
    loss = model[1](model[0](torch.randn(2, 5, 3, dtype=F64))[0]).square().sum()
    loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    l2(0.25, ["0.weight_*", "1.*"])(model, 0)
    weights = {"0.weight_ih", "0.weight_hh", "1.weight"}
    for name, parameter in model.named_parameters():
        if name in before:
            extra = 0.25 * parameter.detach() if name in weights else 0
            assert torch.equal(parameter.grad, before[name] + extra)
    assert model[1].bias.grad is None


def test_l2_of_sparse_and_unused_parameters() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    l2(0.5)(embedding, 0)
    expected = 0.5 * embedding.weight.detach()
    expected[1] += 2
    torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)
    unused = nn.Linear(2, 2)
    l2(0.5, "weight")(unused, 0)
    assert torch.equal(unused.weight.grad, 0.5 * unused.weight.detach())
    assert unused.bias.grad is None


def test_l2_refusals() -> None:
    with pytest.raises(ConfigError, match=r"no trainable parameter is called 'wieght'; there are weight, bias"):
        l2(0.1, ["bias", "wieght"])(nn.Linear(2, 2), 0)
    with pytest.raises(ConfigError, match="l2: strength must be 0 or more, got -1"):
        l2(-1.0)


# ------------------------------------------------------------------------------------------------------------- outputs


def test_penalties_are_their_sums() -> None:
    ys, lengths = torch.randn(B, T, H, dtype=F64), torch.tensor([7, 4, 1, 0])
    resets = torch.rand(B, T) < 0.3
    resets[0, 2] = resets[0, 0] = True
    for row in range(B):
        n = int(lengths[row])
        level = sum(float(ys[row, t].square().sum()) for t in range(n)) / H
        moves = [float((ys[row, t] - ys[row, t - 1]).square().sum()) / H for t in range(1, n)]
        uncut = sum(m for t, m in enumerate(moves, 1) if not resets[row, t])
        assert float(activation_penalty(ys, lengths)[row]) == pytest.approx(level)
        assert float(change_penalty(ys, lengths)[row]) == pytest.approx(sum(moves))
        assert float(change_penalty(ys, lengths, resets)[row]) == pytest.approx(uncut)
    torch.testing.assert_close(activation_penalty(ys), activation_penalty(ys, torch.full((B,), T)))
    torch.testing.assert_close(change_penalty(ys), change_penalty(ys, torch.full((B,), T)))
    assert torch.equal(change_penalty(ys[:, :1]), torch.zeros(B, dtype=F64))


def test_padding_reaches_neither_value_nor_gradient() -> None:
    ys, lengths = torch.randn(2, T, H), torch.tensor([3, 0])
    ys[0, 3:] = 1e30
    ys.requires_grad_()
    total = (activation_penalty(ys, lengths) + change_penalty(ys, lengths)).sum()
    assert total.isfinite()
    (gradient,) = torch.autograd.grad(total, ys)
    assert not gradient[0, 3:].any()
    assert not gradient[1].any()
    assert activation_penalty(ys.bfloat16(), lengths).dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------ dropouts


def test_embedding_dropout_drops_words_whole_once_a_call() -> None:
    embedding, plain = EmbeddingDropout(50, D, 0.4), nn.Embedding(50, D)
    plain.load_state_dict(embedding.state_dict())
    tokens = torch.randint(50, (30, 40))
    xs, whole = embedding(tokens), plain(tokens)
    dropped = (xs == 0).all(-1)
    assert dropped.any()
    torch.testing.assert_close(xs, torch.where(dropped[..., None], 0, whole / 0.6))
    for word in range(50):
        assert dropped[tokens == word].float().std(correction=0) == 0  # at all of its places, or at none
    assert not torch.equal(embedding(tokens), xs)
    assert torch.equal(embedding.eval()(tokens), whole)
    many = EmbeddingDropout(20_000, 1, 0.4)
    assert float((many(torch.arange(20_000)) == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert torch.equal(EmbeddingDropout(5, 2, 0.0)(tokens % 5).detach() != 0, torch.ones(30, 40, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"EmbeddingDropout: p should be a probability in \[0, 1\), but is 1.0"):
        EmbeddingDropout(5, 2, 1.0)


def made(cell: es.Cell) -> es.Cell:
    return cell.double()


def mask_of(seed: int, width: int = H) -> Tensor:
    torch.manual_seed(seed)
    return dropout_mask(torch.ones(1, dtype=F64), (B, 1, width), 0.4)[:, 0]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_state_dropout_is_gals_lstm(backend: str) -> None:
    inner = made(es.LSTM(D, H))
    cell, xs, mask = StateDropout(inner, 0.4), torch.randn(B, T, D, dtype=F64), mask_of(3)
    torch.manual_seed(3)
    ys, (h_end, c_end) = cell(xs, backend=backend)
    h = c = torch.zeros(B, H, dtype=F64)
    expected = []
    for x in xs.unbind(1):
        gates = x @ inner.weight_ih.T + inner.bias_ih + (h * mask) @ inner.weight_hh.T + inner.bias_hh
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # carried whole
        h = o.sigmoid() * c.tanh()
        expected.append(h)
    torch.testing.assert_close(ys, torch.stack(expected, 1))
    torch.testing.assert_close(h_end, h)
    torch.testing.assert_close(c_end, c)


def test_state_dropout_reaches_products_of_other_vectors() -> None:
    """GRUBefore multiplies U by r ∘ h: that product reads through the mask too, and what is carried does not."""
    inner = made(es.GRUBefore(D, H))
    cell, xs, mask = StateDropout(inner, 0.4), torch.randn(B, T, D, dtype=F64), mask_of(4)
    torch.manual_seed(4)
    ys, _ = cell(xs)
    rows = {gate: slice(k * H, (k + 1) * H) for k, gate in enumerate(inner.input_gates)}
    h, expected = torch.zeros(B, H, dtype=F64), []

    def gate(name: str, x: Tensor, v: Tensor) -> Tensor:
        part = rows[name]
        return x @ inner.weight_ih[part].T + inner.bias_ih[part] + v @ inner.weight_hh[part].T + inner.bias_hh[part]

    for x in xs.unbind(1):
        r, z = (gate(name, x, h * mask).sigmoid() for name in "rz")
        n = gate("n", x, r * h * mask).tanh()
        h = (1 - z) * n + z * h
        expected.append(h)
    torch.testing.assert_close(ys, torch.stack(expected, 1))


def test_state_dropout_is_the_cell_in_eval_and_refuses_what_it_cannot_do() -> None:
    inner, xs = made(es.GRU(D, H)), torch.randn(B, T, D, dtype=F64)
    cell = StateDropout(inner, 0.4)
    with pytest.raises(RuntimeError, match="StateDropout: a single step"):
        cell.step(xs[:, 0], cell.initial_state(B, xs))
    assert not torch.equal(cell(xs)[0], cell(xs)[0])
    assert torch.equal(cell.eval()(xs)[0], inner(xs)[0])
    torch.testing.assert_close(cell.step(xs[:, 0], cell.initial_state(B, xs))[0], inner(xs[:, :1])[0][:, 0])
    for bad in (es.MinGRU(D, H), es.Stack(es.GRU(D, H))):
        with pytest.raises(TypeError, match="StateDropout: expected a `Gated` cell"):
            StateDropout(bad, 0.1)
    with pytest.raises(ValueError, match=r"StateDropout: p should be a probability"):
        StateDropout(es.GRU(D, H), 1.0)
    if refused(BACKENDS["fused"], inner, xs, None, None) is None:
        fed = (xs, torch.ones(B, T, H, dtype=F64))
        assert refused(BACKENDS["fused"], cell._fed[0], fed, None, None) is None


# ------------------------------------------------------------------------------------------------------------- recipes

MINIMAL = "task: language-model\ntrain:\n  max_steps: 20\n"
KEYS = {
    "model.embedding_dropout": 0.3,
    "model.weight_drop": 0.4,
    "model.state_dropout": 0.3,
    "train.l2": 0.05,
    "objective.activation_penalty": 2.0,
    "objective.change_penalty": 1.0,
    "train.clip_value": 1e-4,
    "train.fixed_norm": 0.3,
    "train.gradient_noise": 1e-3,
}
SIZES = ["model.embedding_size=8", "model.hidden_size=12", "model.layers=2", "model.dropout=0.2"]


class Tokens:
    """Random tokens in lanes."""

    batch_size, carries_state = 4, True

    def __init__(self) -> None:
        self.tokens = torch.randint(9, (4, 61), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 6

    def batch(self, epoch: int, index: int) -> TokenBatch:
        part = self.tokens[:, 10 * index : 10 * index + 11]
        return TokenBatch(part[:, :-1], part[:, 1:], None, None, 0, 10)


def recipe(*overrides: str) -> LanguageModelRecipe:
    return parse_recipe(MINIMAL, "r.yaml", [*SIZES, *overrides])


def fitted(out: Path, config: LanguageModelRecipe, steps: int = 20, resume: bool = False) -> bytes:
    torch.manual_seed(0)
    model, goal = TokenModel(9, config.model), config.objective
    settings = config.train.model_copy(update={"max_steps": steps, "learning_rate": 0.01, "schedule": "constant"})
    fit(
        model,
        likelihood(goal.k2, goal.activation_penalty, goal.change_penalty),
        Tokens(),
        settings,
        out=out,
        seed=config.seed,
        resume=resume,
        log=lambda line: None,
    )
    return (out / "model.safetensors").read_bytes()


def test_every_key_has_an_effect_and_together_they_resume_bit_for_bit(tmp_path: Path) -> None:
    plain = fitted(tmp_path / "plain", recipe())
    alone = {key: fitted(tmp_path / key, recipe(f"{key}={value}")) for key, value in KEYS.items()}
    assert [key for key, found in alone.items() if found == plain] == []
    assert len(set(alone.values())) == len(KEYS)
    together = recipe(*[f"{key}={value}" for key, value in KEYS.items()], "model.variational=true", "objective.k2=4")
    whole = fitted(tmp_path / "whole", together)
    fitted(tmp_path / "parts", together, steps=8)
    assert fitted(tmp_path / "parts", together, resume=True) == whole


@pytest.mark.parametrize("variational", ["true", "false"])
def test_the_recipe_of_an_awd_lstm(variational: str) -> None:
    """Merity 2018: weight drop, one mask for all steps between layers, whole words dropped, AR, TAR, tied weights."""
    config = recipe(*[f"{k}={v}" for k, v in KEYS.items()], "model.tied=true", f"model.variational={variational}")
    model = TokenModel(9, config.model)
    assert model.head.weight is model.embedding.weight
    plain = TokenModel(9, recipe("model.tied=true").model)
    assert model.embedding.state_dict().keys() == plain.embedding.state_dict().keys()
    assert [name for name, p in model.named_parameters() if p.ndim == 2 and name.endswith("weight_hh")]
    tokens = torch.randint(9, (3, 6))
    ys, before, state = model.outputs(tokens)
    assert (ys == 0).any()
    assert not (before == 0).any()
    top = es.state.leaves(state)
    assert any(torch.equal(leaf, before[:, -1]) for _, leaf in top)
    model.eval()
    torch.testing.assert_close(model.outputs(tokens)[0], model(tokens)[0])


def test_the_penalties_are_in_the_total_and_not_in_what_is_reported() -> None:
    torch.manual_seed(0)
    model = TokenModel(9, TokenModelSection(embedding_size=4, hidden_size=6))
    batch = TokenBatch(torch.randint(9, (3, 10)), torch.randint(9, (3, 10)), torch.tensor([10, 6, 0]), None, 0, 10)
    (plain,) = likelihood()(model, batch, None)
    (loss,) = likelihood(None, 2.0, 3.0)(model, batch, None)
    ys, _ = model(batch.inputs, lengths=batch.lengths)
    extra = 2 * activation_penalty(ys, batch.lengths) + 3 * change_penalty(ys, batch.lengths)
    torch.testing.assert_close(loss.total, plain.total + extra)
    assert torch.equal(loss.reported, plain.reported)
    assert float(extra[0].detach()) > 0 == float(extra[2].detach())
    context = TokenBatch(batch.inputs, batch.targets, None, None, 4, 10)
    (windowed,) = likelihood(6, 2.0, 3.0)(model, context, None)
    (bare,) = likelihood(6)(model, context, None)
    seen = model(batch.inputs)[0][:, 4:]
    torch.testing.assert_close(windowed.total - bare.total, 2 * activation_penalty(seen) + 3 * change_penalty(seen))


def test_rules_of_a_recipe_come_in_their_order() -> None:
    config = recipe("train.l2=1", "train.l2_on=[w*]", "train.clip_value=0.5", "train.fixed_norm=0.25")
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.0, -0.9]]))
    for rule in update_rules(model, config.train, 0):
        rule(model, 0)
    clipped = torch.tensor([0.5, 0.1, 0.5])  # of 10, 0.1 and 1
    found = torch.cat([model.weight.grad[0], model.bias.grad])
    torch.testing.assert_close(found, clipped * 0.25 / clipped.norm())
    with pytest.raises(ConfigError, match="no trainable parameter is called 'x'"):
        update_rules(model, recipe("train.l2=1", "train.l2_on=x").train, 0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.weight_drop=1"], "model.weight_drop: expected a number ≥ 0 and < 1"),
        (["model.embeding_dropout=0.1"], "did you mean model.embedding_dropout?"),
        (["objective.activation_penalty=-1"], "objective.activation_penalty: expected a number ≥ 0"),
        (["train.clip_value=0"], "train.clip_value: expected a number > 0 or null"),
        (["train.l2_on=[a, 3]"], "train.l2_on: expected text or a list (each text)"),
        (["train.fixed_norm=2"], "train.fixed_norm: expected at most clip_norm (1)"),
        (["model.cell=MinGRU", "model.weight_drop=0.1"], "model.weight_drop: expected a cell with a recurrent matrix"),
        (["model.cell=MinGRU", "model.state_dropout=0.1"], "model: StateDropout"),
        (["model.state_dropout=0.1", "model.zoneout=0.1"], "model.state_dropout: expected zoneout 0 beside it"),
    ],
)
def test_keys_that_cannot_be_used(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(*overrides)
    assert said in str(caught.value)
    assert recipe("train.fixed_norm=2", "train.clip_norm=null").train.fixed_norm == 2


def test_dropouts_within_the_recurrence_go_with_every_cell_that_has_one(tmp_path: Path) -> None:
    tokens = torch.randint(9, (2, 5))
    for kind in ("LSTM", "GRU", "GRUBefore", "RNN"):
        options: dict[str, Any] = {"cell": kind, "embedding_size": 4, "hidden_size": 6, "weight_drop": 0.3}
        for more in ({"state_dropout": 0.3}, {"zoneout": 0.2}, {"residual": True, "layers": 2}):
            model = TokenModel(9, TokenModelSection(**options, **more))
            ys, _ = model(tokens)
            ys.sum().backward()
            assert math.isfinite(float(ys.detach().sum()))
            matrices = [p for name, p in model.named_parameters() if name.endswith("weight_hh")]
            assert all((p.grad == 0).any() for p in matrices)  # of the weights that were dropped


@pytest.mark.parametrize("kind", ["MogrifierLSTM", "QRNN"])
def test_the_recipe_of_awd_lstm_takes_other_cells(kind: str) -> None:
    """Every regulariser of `awd-lstm-ptb` acts; a cell without recurrent matrices says what to leave out."""
    small = [f"model.cell={kind}", "model.embedding_size=4", "model.hidden_size=[6, 4]"]
    if kind == "QRNN":
        with pytest.raises(ConfigError, match=r"weight_hh; this one has none; set model\.weight_drop=0"):
            load_recipe("awd-lstm-ptb", small)
        small.append("model.weight_drop=0")
    config = load_recipe("awd-lstm-ptb", small)
    assert isinstance(config, LanguageModelRecipe)
    goal, batch = config.objective, Tokens().batch(0, 0)
    torch.manual_seed(0)
    model = TokenModel(9, config.model)
    losses = {}
    for penalties in ((0.0, 0.0), (goal.activation_penalty, goal.change_penalty)):
        torch.manual_seed(1)  # the same masks
        (loss,) = likelihood(None, *penalties)(model, batch, None)
        losses[penalties] = float(loss.total.detach().sum())
    assert losses[2.0, 1.0] > losses[0.0, 0.0]
    loss.total.sum().backward()
    matrices = [p for name, p in model.named_parameters() if name.endswith("weight_hh")]
    assert len(matrices) == (2 if kind == "MogrifierLSTM" else 0)
    assert all(0.2 < float((p.grad == 0).float().mean()) < 0.8 for p in matrices)  # half of the weights were dropped
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.slow
def test_a_recipe_trained_by_name_has_the_effects(tmp_path: Path) -> None:
    """As above, by `es.train`: that a recipe's keys come as far as `fit`."""
    short = ["train.max_steps=3", "train.max_minutes=null", "train.batch_size=4", "objective.k1=16", "train.threads=1"]
    found = {}
    for key in ("seed", "train.l2", "objective.activation_penalty", "objective.change_penalty", "train.clip_value"):
        value = KEYS.get(key, 1)
        out = tmp_path / key
        es.train("shakespeare-minute", out, lambda line: None, overrides=[*SIZES, *short, f"{key}={value}"])
        found[key] = (out / "model.safetensors").read_bytes()
    assert len(set(found.values())) == len(found)

"""Optimizers, schedules, rules and averages against their formulas."""

from __future__ import annotations

import math
from typing import Any

import learn_toy as toy
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from everstep.errors import ConfigError, RunError
from everstep.learn import FitSettings, clip_by_global_norm
from everstep.learn.averaging import Averaging, ema_decay, nt_asgd_triggers
from everstep.learn.denormals import flushed_denormals
from everstep.learn.learner import Learner
from everstep.learn.optim import load_optimizer_tensors, make_optimizer, optimizer_tensors, parameter_groups, trainable
from everstep.learn.precision import FEWEST, multiplied, uses_bfloat16
from everstep.learn.rowwise_adam import RowwiseAdamW
from everstep.learn.rules import global_norm
from everstep.learn.schedules import Plateau, learning_rate

PLAIN = {"max_steps": 10, "learning_rate": 1e-3, "schedule": "constant", "constant_epochs": 4, "plateau_patience": 1}


def settings(**options: Any) -> FitSettings:
    return FitSettings(**(PLAIN | options))


def test_weight_decay_spares_biases_and_vectors() -> None:
    model = toy.Toy()
    model.register_parameter("gain", nn.Parameter(torch.ones(3)))
    model.register_parameter("bias_per_gate", nn.Parameter(torch.ones(3, 2)))
    model.gru.weight_hh_l1.requires_grad_(False)
    names = {id(p): n for n, p in model.named_parameters()}
    with_decay, without = parameter_groups(model, 0.5)
    weights = ["embedding.weight", "gru.weight_ih_l0", "gru.weight_hh_l0", "gru.weight_ih_l1"]  # out.weight is tied
    assert [names[id(p)] for p in with_decay["params"]] == weights
    assert {names[id(p)] for p in without["params"]} == {
        *(f"gru.bias_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)),
        "out.bias",
        "gain",
        "bias_per_gate",
    }
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.5, 0.0)


def test_a_model_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), settings())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", lambda w, g: w - 0.1 * (g + 0.01 * w)),
        ("adamw", lambda w, g: w * (1 - 0.1 * 0.01) - 0.1 * g / (abs(g) + 1e-8)),
        ("adagrad", lambda w, g: w - 0.1 * (g + 0.01 * w) / (abs(g + 0.01 * w) + 1e-10)),
        ("rmsprop", lambda w, g: w - 0.1 * (g + 0.01 * w) / (math.sqrt(0.01 * (g + 0.01 * w) ** 2) + 1e-8)),
    ],
)
def test_the_first_step_of_each_optimizer(name: Any, expected: Any) -> None:
    model = nn.Linear(1, 1, bias=False)
    weight = model.weight.item()
    optimizer = make_optimizer(model, settings(optimizer=name, learning_rate=0.1, weight_decay=0.01))
    model.weight.grad = torch.full((1, 1), 0.3)
    optimizer.step()
    assert model.weight.item() == pytest.approx(expected(weight, 0.3), rel=1e-5)


def test_adamw_is_fused_for_float32_only() -> None:
    assert make_optimizer(nn.Linear(1, 1), settings()).defaults["fused"]
    assert not make_optimizer(nn.Linear(1, 1).double(), settings()).defaults["fused"]


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adagrad"])
def test_optimizer_state_comes_back(name: Any) -> None:
    momentum = 0.9 if name in ("sgd", "rmsprop") else 0.0
    given = settings(optimizer=name, momentum=momentum, weight_decay=0.1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    first = make_optimizer(model, given)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        first.step()
    saved = {key: tensor.clone() for key, tensor in optimizer_tensors(first, model).items()}
    second = make_optimizer(model, given)
    load_optimizer_tensors(second, model, saved)
    restored = optimizer_tensors(second, model)
    assert saved
    assert restored.keys() == saved.keys()
    assert all(torch.equal(restored[key], tensor) for key, tensor in saved.items())
    with pytest.raises(RunError, match="does not train"):
        load_optimizer_tensors(second, model, {"exp_avg/other.weight": torch.ones(1)})


def test_clipping_keeps_the_direction() -> None:
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 10
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in before))
    clip_by_global_norm(2 * norm)(model, 0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    clip_by_global_norm(0.5)(model, 0)
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, old * 0.5 / norm)
    model.zero_grad(set_to_none=True)
    clip_by_global_norm(1.0)(model, 0)  # nothing to clip
    assert global_norm([]) == 0
    model.weight.grad = torch.zeros_like(model.weight)
    clip_by_global_norm(1.0)(model, 0)
    assert not model.weight.grad.any()
    with pytest.raises(ConfigError, match="above 0"):
        clip_by_global_norm(0.0)


def test_schedules_are_their_formulas() -> None:
    base = {"learning_rate": 2.0, "min_learning_rate": 0.5}
    assert learning_rate(settings(**base), 7, 3, 0.7) == 2.0

    cosine = settings(**base, schedule="cosine", warmup_steps=4)
    assert learning_rate(cosine, 0, 0, 0.0) == 2.0 / 4
    for step in range(4, 11):
        expected = 0.5 + 1.5 * (1 + math.cos(math.pi * step / 10)) / 2
        assert learning_rate(cosine, step, 0, step / 10) == pytest.approx(expected)
    assert learning_rate(cosine, 10, 1, 1.0) == 0.5

    zaremba = settings(**base, schedule="step", constant_epochs=2, decay=1.5)
    rates = [learning_rate(zaremba, 0, epoch, 0.0) for epoch in range(6)]
    assert rates == pytest.approx([2.0, 2.0, 2 / 1.5, 2 / 1.5**2, 2 / 1.5**3, 0.5])

    plateau = settings(**base, schedule="plateau")
    assert learning_rate(plateau, 0, 0, 0.0, 0.5) == 1.0
    assert learning_rate(plateau, 0, 0, 0.0, 0.1) == 0.5


def test_plateau_cuts_after_patience_without_a_new_best() -> None:
    plateau, factors = Plateau(), []
    for valid in [3.0, 2.0, 2.0, 2.1, 1.9, 2.0, 2.0, 2.0, 2.0]:
        plateau.observe(valid, cut=0.5, patience=2)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_ema_is_its_recursion() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaging = Averaging(model, settings(averaging="ema", ema_decay=0.5))
    expected = model.weight.item()
    for n in range(8):
        with torch.no_grad():
            model.weight.fill_(n)
        averaging.update()
        decay = min(0.5, (1 + n) / (10 + n))
        assert ema_decay(0.5, n) == decay
        expected = decay * expected + (1 - decay) * n
        assert averaging.tensors()["weight"].item() == pytest.approx(expected, rel=1e-6)
    with averaging.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 7
    assert not averaging.observe(9.0)


def test_nt_asgd_averages_from_its_trigger() -> None:
    assert not nt_asgd_triggers(9.0, [1.0, 2.0], patience=2)  # t > n is asked for
    assert not nt_asgd_triggers(1.5, [2.0, 1.0, 1.0], patience=2)  # the best of those more than n ago is 2
    assert nt_asgd_triggers(2.5, [2.0, 1.0, 1.0], patience=2)

    model = nn.Linear(1, 1, bias=False)
    averaging = Averaging(model, settings(averaging="nt-asgd", nt_asgd_patience=1))

    def move(value: float) -> None:
        with torch.no_grad():
            model.weight.fill_(value)
        averaging.update()

    started = []
    for value, valid in [(1.0, 5.0), (2.0, 4.0), (3.0, 6.0)]:
        move(value)
        started.append(averaging.observe(valid))
    assert started == [False, False, True]
    move(5.0)
    move(7.0)
    assert averaging.tensors()["weight"].item() == 5.0  # (3 + 5 + 7) / 3
    assert not averaging.observe(100.0)
    assert averaging.earlier == [5.0, 4.0, 6.0]


def test_frozen_and_shared_parameters() -> None:
    model = toy.Toy()
    model.out.bias.requires_grad_(False)
    assert "out.bias" not in trainable(model)
    assert "out.weight" not in trainable(model)
    assert "embedding.weight" in trainable(model)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": None},
        {"max_steps": 0},
        {"max_minutes": 0.0},
        {"optimizer": "adam"},
        {"schedule": "triangular"},
        {"precision": "float16"},
        {"averaging": "swa"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"clip_norm": -1.0},
        {"momentum": 1.0},
        {"betas": (0.9, 1.0)},
        {"decay": 0.5},
        {"plateau_factor": 1.0},
        {"accumulate": 0},
        {"patience": 0},
        {"weight_decay": -0.1},
        {"min_learning_rate": 1.0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        settings(**options)


def test_precision_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for native in (False, True):
        monkeypatch.setattr("everstep.native.processor.has_bfloat16", lambda native=native: native)
        assert uses_bfloat16("float32", cpu) == (False, "")
        assert uses_bfloat16("auto", cpu) == (native, "")
        chosen, notice = uses_bfloat16("bfloat16", cpu)
        assert chosen
        assert bool(notice) is not native
    assert uses_bfloat16("auto", cpu, FEWEST - 1) == (False, "")  # native, but too little to multiply
    assert uses_bfloat16("bfloat16", cpu, FEWEST - 1) == (True, "")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert uses_bfloat16("auto", torch.device("cuda"), FEWEST - 1) == (True, "")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert uses_bfloat16("auto", torch.device("cuda")) == (False, "")


def test_weights_that_are_multiplied_are_counted_once() -> None:
    model = toy.Toy()  # its embedding is its softmax, too
    recurrent = sum(p.numel() for name, p in model.gru.named_parameters() if "weight" in name)
    assert multiplied(model) == recurrent + model.embedding.weight.numel()
    assert multiplied(nn.Embedding(9, 9)) == 0
    assert not Learner(model, toy.objective, toy.Lanes(), settings()).bfloat16


# ------------------------------------------------------------------------------------------------ sparse gradients


class Rows(nn.Module):
    """An embedding with sparse gradients below a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3, sparse=True)
        self.linear = nn.Linear(3, 1)

    def forward(self, ids: list[int]) -> torch.Tensor:
        return self.linear(self.embedding(torch.tensor(ids))).square().sum()


def test_rows_are_updated_as_if_each_had_an_optimizer_of_its_own() -> None:
    model = Rows()
    before = model.embedding.weight.detach().clone()
    optimizer = make_optimizer(model, settings(learning_rate=0.1, weight_decay=0.5))
    assert type(optimizer) is RowwiseAdamW
    alone = {row: nn.Parameter(before[row].clone()) for row in range(5)}
    each = {row: torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5) for row, weight in alone.items()}
    dense = [nn.Parameter(p.detach().clone()) for p in model.linear.parameters()]
    groups = [{"params": [one], "weight_decay": decay} for one, decay in zip(dense, (0.5, 0.0), strict=True)]
    wanted = torch.optim.AdamW(groups, lr=0.1)
    for ids in ([0, 1, 1], [1, 4], [4, 0, 0, 0], [1]):
        optimizer.zero_grad()
        model(ids).backward()
        gradient = model.embedding.weight.grad.to_dense()
        for row in set(ids):
            alone[row].grad = gradient[row]
            each[row].step()
        for one, other in zip(dense, model.linear.parameters(), strict=True):
            one.grad = other.grad.clone()
        wanted.step()
        optimizer.step()
        assert model.embedding.weight.grad.is_sparse
    for row in range(5):
        torch.testing.assert_close(model.embedding.weight[row], alone[row])
    for one, other in zip(dense, model.linear.parameters(), strict=True):
        torch.testing.assert_close(other, one)
    torch.testing.assert_close(model.embedding.weight[2:4].detach(), before[2:4], rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """The most numbers that `index_select` copies at once."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index_select.default:
            self.most = max(self.most, found.numel())
        return found


def test_many_rows_move_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for together, most in ((1 << 22, 4 * 3), (6, 6), (2, 3)):
        monkeypatch.setattr("everstep.learn.rowwise_adam._TOGETHER", together)
        torch.manual_seed(1)
        model, largest = Rows(), Largest()
        optimizer = make_optimizer(model, settings(learning_rate=0.1))
        for ids in ([0, 1, 1, 4, 3], [1, 4]):
            optimizer.zero_grad()
            model(ids).backward()
            with largest:
                optimizer.step()
        assert largest.most == most
        weights.append(model.embedding.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_the_state_of_rows_survives_a_checkpoint() -> None:
    model, other = Rows(), Rows()
    optimizer, again = make_optimizer(model, settings()), make_optimizer(other, settings())
    for ids in ([0, 1], [1, 2]):
        optimizer.zero_grad()
        model(ids).backward()
        optimizer.step()
    other.load_state_dict(model.state_dict())
    stored = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    load_optimizer_tensors(again, other, stored)
    for one, its in ((model, optimizer), (other, again)):
        its.zero_grad()
        one([1, 3]).backward()
        its.step()
    assert torch.equal(model.embedding.weight, other.embedding.weight)
    assert optimizer.state[model.embedding.weight]["step"].tolist() == [1, 3, 1, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer: expected adamw or sgd, because the gradients of embedding are"),
        ({"optimizer": "sgd", "momentum": 0.9}, "momentum: expected 0 beside sgd.*got 0.9"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "weight_decay: expected 0 beside sgd"),
        ({"optimizer": "adagrad"}, "optimizer: expected adamw or sgd.*got adagrad"),
        ({"l2": 0.1}, "l2: expected 0"),
    ],
)
def test_what_has_no_meaning_for_rows_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_optimizer(Rows(), settings(**options))
    for name in ("sgd", "adamw"):
        model = Rows()
        optimizer = make_optimizer(model, settings(optimizer=name))
        model([1, 1]).backward()
        optimizer.step()


def test_numbers_below_the_normal_ones_are_zero_within_a_step_alone() -> None:
    least = torch.tensor(1e-39)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    torch.set_flush_denormal(False)
    seen = []

    def objective(model: nn.Module, batch: Any, state: Any) -> Any:
        seen.append(float(least * 0.5))
        yield from toy.objective(model, batch, state)

    learner = Learner(toy.Toy(), objective, toy.Lanes(), settings())
    learner.step()
    with flushed_denormals():
        learner.step()
        assert float(least * 0.5) == 0
    assert seen == [0, 0]
    assert float(least * 0.5) > 0

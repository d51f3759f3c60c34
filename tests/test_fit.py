"""`fit`: what a step is, what stops it, and what it leaves."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch
from torch import nn

from everstep.data.batches import TokenBatch
from everstep.errors import ConfigError, DataError, Diverged, Interrupted, RunError
from everstep.learn import FitSettings, Loss, clip_by_global_norm, load_weights, read_metrics
from everstep.learn.learner import Learner
from everstep.learn.progress import Screen
from everstep.storage import files


def gradients_of(batches: Any, objective: Any = toy.objective, **options: Any) -> list[torch.Tensor]:
    """The gradients of the first step, by a rule that keeps them."""
    kept: list[torch.Tensor] = []

    def keep(model: nn.Module, step: int) -> None:
        kept.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)

    settings = FitSettings(**{"max_steps": 1, **toy.PLAIN, **options})
    Learner(toy.Toy(dropout=0.0), objective, batches, settings, [keep]).step()
    return kept


def test_it_learns(tmp_path: Path) -> None:
    result = toy.run(tmp_path, max_epochs=60, max_steps=None, model=toy.Toy(dropout=0.0), log_every_seconds=0.0)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[0]["loss"] > math.log(toy.VOCABULARY) - 0.3
    assert records[-1]["loss"] < 1.0
    assert (result.steps, result.epochs, result.tokens) == (420, 60, 60 * 4 * 35)
    assert result.stopped_by == "max_epochs"
    assert result.metrics == records[-1]


class Halves(toy.Lanes):
    """The lanes of `toy.Lanes(8, number=1)`, half of them a batch."""

    carries_state = False

    def __init__(self, ragged: bool):
        super().__init__(rows=8, number=1, ragged=ragged)
        self._whole = toy.Lanes(rows=8, number=1, ragged=ragged).batch(0, 0)

    def __len__(self) -> int:
        return 2

    def batch(self, epoch: int, index: int) -> TokenBatch:
        rows = slice(4 * index, 4 * index + 4)
        whole = self._whole
        lengths = None if whole.lengths is None else whole.lengths[rows]
        return replace(whole, inputs=whole.inputs[rows], targets=whole.targets[rows], lengths=lengths)


@pytest.mark.parametrize("ragged", [False, True])
def test_accumulated_halves_equal_the_whole(ragged: bool) -> None:
    whole = gradients_of(toy.Lanes(rows=8, number=1, ragged=ragged))
    halves = gradients_of(Halves(ragged), accumulate=2)
    for a, b in zip(whole, halves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    counts = [Halves(ragged).batch(0, index).count for index in range(2)]
    assert (counts[0] != counts[1]) is ragged


def test_accumulation_ends_with_the_epoch(tmp_path: Path) -> None:
    result = toy.run(tmp_path, accumulate=3, max_epochs=2, max_steps=None)
    assert result.steps == 6  # 3 + 3 + 1 batches an epoch
    assert result.tokens == 2 * 7 * 20


def test_pieces_are_backpropagated_one_by_one() -> None:
    def by_hand(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
        *_, last = losses = list(toy.pieces(model, batch, state))
        yield Loss(sum(loss.total for loss in losses), sum(loss.reported for loss in losses), last.state)

    pieces, together = gradients_of(toy.Lanes(), toy.pieces), gradients_of(toy.Lanes(), by_hand)
    truncated = gradients_of(toy.Lanes())
    for a, b in zip(pieces, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert not all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(pieces, truncated, strict=True))


def test_state_is_carried_within_an_epoch_only(tmp_path: Path) -> None:
    seen: list[torch.Tensor | None] = []
    made: list[torch.Tensor] = []

    def watch(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
        seen.append(None if state is None else state["gru"][0])
        for loss in toy.objective(model, batch, state):
            made.append(loss.state["gru"][0])
            yield loss

    toy.run(tmp_path / "a", objective=watch, max_steps=8)
    assert [state is None for state in seen] == [True] + 6 * [False] + [True]
    for state, source in zip(seen[1:7], made, strict=False):
        assert state is not None
        assert not state.requires_grad
        assert torch.equal(state, source.detach())
    seen.clear()
    toy.run(tmp_path / "b", objective=watch, max_steps=3, batches=Halves(False))
    assert seen == [None] * 3


def test_bfloat16_keeps_state_and_weights_in_float32() -> None:
    dtypes: list[torch.dtype] = []

    def half(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
        dtypes.append(nn.functional.linear(torch.ones(1, 8), model.embedding.weight).dtype)
        for loss in toy.objective(model, batch, state):
            yield loss._replace(state=loss.state["gru"][0].bfloat16())

    learner = Learner(
        toy.Toy(), half, toy.Lanes(number=1), FitSettings(**{**toy.PLAIN, "max_steps": 1, "precision": "bfloat16"})
    )
    learner.batches = toy.Lanes(number=2)
    learner.step()
    assert dtypes == [torch.bfloat16]
    assert learner.carried.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())


def spoiling(step: int, lane: int, value: float = math.nan) -> Any:
    calls = iter(range(1, 1000))

    def objective(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
        for loss in toy.objective(model, batch, state):
            spoiled = loss.total.clone()
            if next(calls) == step:
                spoiled[lane] = value
            yield loss._replace(total=spoiled)

    return objective


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    with pytest.raises(Diverged) as caught:
        toy.run(tmp_path, objective=spoiling(6, 2, value), checkpoint_every=2, clip_norm=0.25, log_every_seconds=99.0)
    message = str(caught.value)
    for part in (
        "at step 6",
        "row 2 of 4",
        "batch 5",
        "step-00000004",
        "learning_rate (now 0.01)",
        "clip_norm (now 0.25)",
    ):
        assert part in message
    assert str(value) in message
    assert caught.value.exit_code == 3
    assert len(message.split("before: ")[1].split(". Try")[0].split(", ")) == 5
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 5
    resumed = toy.run(tmp_path, resume=True, checkpoint_every=2)
    assert resumed.steps == 12


def test_divergence_before_the_first_checkpoint_moves_nothing(tmp_path: Path) -> None:
    model = toy.Toy()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(Diverged, match="no checkpoint had been saved"):
        toy.run(tmp_path, model=model, objective=spoiling(1, 0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def spoil(model: nn.Module, step: int) -> None:
        if step == 3:
            model.gru.weight_hh_l1.grad[0, 0] = math.inf

    with pytest.raises(Diverged, match=r"at step 4 .*the gradient of gru\.weight_hh_l1 is not finite"):
        toy.run(tmp_path / "a", rules=[spoil])

    def blow_up(model: nn.Module, step: int) -> None:
        model.out.bias.grad.fill_(1e30)

    with pytest.raises(Diverged, match="too large for its type"):
        toy.run(tmp_path / "b", rules=[blow_up])


def test_a_validation_that_is_not_finite_stops(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="validation loss at step 2 is nan"):
        toy.run(tmp_path, validate=lambda model: math.nan, validate_every=2)


def test_clip_norm_is_the_rule(tmp_path: Path) -> None:
    toy.run(tmp_path / "a", clip_norm=0.01, optimizer="sgd")
    toy.run(tmp_path / "b", rules=[clip_by_global_norm(0.01)], optimizer="sgd")
    toy.run(tmp_path / "c", optimizer="sgd")
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_validation_does_not_touch_training(tmp_path: Path) -> None:
    for name, options in {
        "never": {},
        "often": {"validate": toy.validation, "validate_every": 1},
        "seldom": {"validate": toy.validation, "validate_every": 5},
    }.items():
        toy.run(tmp_path / name, **options)
    last = [next((tmp_path / name / "checkpoints").glob("step-00000012")) for name in ("never", "often", "seldom")]
    for file in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
        assert len({(folder / file).read_bytes() for folder in last}) == 1


def test_validation_points_and_the_best(tmp_path: Path) -> None:
    valids = iter([5.0, 3.0, 4.0])
    weights: list[torch.Tensor] = []

    def validate(model: nn.Module) -> float:
        assert not model.training
        weights.append(model.out.bias.detach().clone())
        return next(valids)

    model = toy.Toy()
    result = toy.run(tmp_path, model=model, validate=validate, max_steps=16)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "valid" in r]
    assert [(r["step"], r["valid"], r["best"]) for r in records] == [(7, 5.0, True), (14, 3.0, True), (16, 4.0, False)]
    assert (result.best_valid, result.best_step, result.stopped_by) == (3.0, 14, "max_steps")
    assert torch.equal(model.out.bias, weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert model.training
    fresh = toy.Toy(seed=5)
    load_weights(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh.out.bias, weights[1])
    assert fresh.out.weight is fresh.embedding.weight


def test_checkpoints_also_come_by_the_clock(tmp_path: Path) -> None:
    options = {"max_steps": 4, "validate_every": 100, "keep_last": 9}
    toy.run(tmp_path / "rare", **options)
    toy.run(tmp_path / "often", checkpoint_minutes=1e-9, **options)
    names = [sorted(path.name[-2:] for path in (tmp_path / n / "checkpoints").iterdir()) for n in ("rare", "often")]
    assert names == [["04"], ["00", "01", "02", "03", "04"]]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    toy.run(tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(RunError, match=r"model.safetensors has '[a-z_.0-9]+', which the model lacks"):
        load_weights(nn.Module(), path)
    path.write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot read the weights"):
        load_weights(toy.Toy(), path)


def test_early_stopping_counts_validations(tmp_path: Path) -> None:
    valids = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    result = toy.run(tmp_path, validate=lambda model: next(valids), validate_every=2, patience=2, max_steps=99)
    assert (result.stopped_by, result.steps, result.best_step) == ("early stopping", 8, 4)


def test_minutes_limit_and_still_validate_at_the_end(tmp_path: Path) -> None:
    result = toy.run(tmp_path, validate=toy.validation, max_steps=None, max_minutes=0.003, schedule="cosine")
    assert result.stopped_by == "max_minutes"
    assert result.seconds >= 0.18
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == result.steps
    assert "valid" in read_metrics(tmp_path / "metrics.jsonl")[-1]


def test_the_schedule_is_followed(tmp_path: Path) -> None:
    toy.run(tmp_path, schedule="cosine", warmup_steps=2, max_steps=10, learning_rate=1.0, log_every_seconds=0.0)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    expected = [min(1, (k + 1) / 2) * (1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)]
    assert rates == pytest.approx(expected)


def test_plateau_lowers_the_rate(tmp_path: Path) -> None:
    options = {
        "schedule": "plateau",
        "validate_every": 2,
        "log_every_seconds": 0.0,
        "max_steps": 8,
        "plateau_patience": 1,
    }
    toy.run(tmp_path, validate=lambda model: 1.0, **options)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    assert rates == [0.01] * 4 + [0.005] * 2 + [0.0025] * 2


@pytest.mark.parametrize("kind", ["ema", "nt-asgd"])
def test_the_average_is_validated_and_kept(tmp_path: Path, kind: str) -> None:
    seen: list[torch.Tensor] = []

    def validate(model: nn.Module) -> float:
        seen.append(model.out.bias.detach().clone())
        return [5.0, 9.0, 9.0, 1.0][len(seen) - 1]

    model = toy.Toy()
    lines: list[str] = []
    options = {"averaging": kind, "nt_asgd_patience": 1, "validate_every": 3, "log": lines.append}
    toy.run(tmp_path, model=model, validate=validate, **options)
    assert torch.equal(model.out.bias, seen[-1])
    (last,) = (tmp_path / "checkpoints").glob("step-00000012")
    from safetensors.torch import load_file

    assert torch.equal(load_file(last / "average.safetensors")["out.bias"], seen[-1])
    assert not torch.equal(load_file(last / "model.safetensors")["out.bias"], seen[-1])
    assert any("averaging starts" in line for line in lines) is (kind == "nt-asgd")


def test_ema_without_validation_is_kept(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    model = toy.Toy()
    toy.run(tmp_path / "a", rules=[lambda model, step: seen.append(model.out.bias.detach().clone())])
    toy.run(tmp_path / "b", averaging="ema", ema_decay=0.5, model=model)
    last = toy.Toy()
    load_weights(last, tmp_path / "a" / "model.safetensors")
    expected = seen[0]
    for n, weights in enumerate([*seen[1:], last.out.bias.detach()]):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(model.out.bias.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path: Path, number: int) -> None:
    def ask(model: nn.Module, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"after step 5, saved in .*step-00000005; resume with: go on") as caught:
        toy.run(tmp_path, rules=[ask], resume_command="go on")
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert toy.run(tmp_path, resume=True).steps == 12


def test_a_second_ctrl_c_within_the_save_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(model: nn.Module, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(files, "_fsync", again)

    def again(descriptor: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.fsync(descriptor)

    with pytest.raises(Interrupted):
        toy.run(tmp_path, rules=[ask])
    monkeypatch.undo()
    assert toy.run(tmp_path, resume=True).steps == 12


def test_a_signal_at_the_very_end_is_not_swallowed(tmp_path: Path) -> None:
    def validate(model: nn.Module) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    with pytest.raises(Interrupted, match="had just ended"):
        toy.run(tmp_path, validate=validate, validate_every=100)
    assert (tmp_path / "model.safetensors").exists()


def test_other_threads_train_without_handlers(tmp_path: Path) -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(toy.run(tmp_path).steps))
    thread.start()
    thread.join()
    assert results == [12]


def test_what_cannot_be_fitted_is_said(tmp_path: Path) -> None:
    for options in ({"schedule": "plateau"}, {"averaging": "nt-asgd"}, {"patience": 1}):
        with pytest.raises(ConfigError, match="no validation data"):
            toy.run(tmp_path, **options)
    with pytest.raises(DataError, match="no batch"):
        toy.run(tmp_path, batches=toy.Lanes(number=0))
    with pytest.raises(ValueError, match="yielded no Loss"):
        toy.run(tmp_path, objective=lambda model, batch, state: iter(()))


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    toy.run(tmp_path)
    with pytest.raises(RunError, match="holds a run already; resume it"):
        toy.run(tmp_path)


def test_lines_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.run(tmp_path, log=None, validate=toy.validation, log_every_seconds=0.0)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "100% step 12" in shown.err
    assert "valid" in shown.err
    assert "left" in shown.err


def test_a_terminal_has_a_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("everstep.learn.progress._LIVE_SECONDS", 0.0)
    toy.run(tmp_path, log=None, validate=toy.validation, precision="float32")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "valid" in shown.err
    screen = Screen(None)
    screen.say("[plain]")
    screen.close()
    assert "[plain]" in capsys.readouterr().err


def test_metrics_hold_what_is_promised(tmp_path: Path) -> None:
    toy.run(tmp_path, log_every_seconds=0.0)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    names = {"step", "epoch", "tokens", "seconds", "loss", "gradient_norm", "learning_rate", "tokens_per_second"}
    assert all(record.keys() == names for record in records)


def test_speed_is_that_of_the_steps_and_not_of_the_validation(tmp_path: Path) -> None:
    def slow(model: nn.Module) -> float:
        time.sleep(0.5)
        return 1.0

    toy.run(tmp_path, validate=slow, validate_every=6, log_every_seconds=99.0)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [record["tokens_per_second"] for record in records if "loss" in record]
    assert len(speeds) == 2
    assert min(speeds) > 6 * 4 * 5 / 0.5


def test_tensorboard_is_written_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    toy.run(tmp_path / "a", tensorboard=True)
    assert list((tmp_path / "a" / "tensorboard").glob("events.*"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install"):
        toy.run(tmp_path / "b", tensorboard=True)

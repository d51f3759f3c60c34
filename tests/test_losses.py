"""What `fit` says to an objective, or to a batch, that is not of the right form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch
from torch import Tensor, nn

from everstep.data.batches import TokenBatch
from everstep.lab.synthetic import Adding
from everstep.learn import FitSettings, Loss
from everstep.learn.learner import Learner

ROWS = 4  # of `toy.Lanes()`


def changed(change: Callable[[Loss], Any]) -> Any:
    """The toy's objective, with each `Loss` changed."""

    def objective(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Any]:
        for loss in toy.objective(model, batch, state):
            yield change(loss)

    return objective


def returned(change: Callable[[Loss], Any]) -> Any:
    """An objective that returns what it should yield."""
    return lambda model, batch, state: change(next(toy.objective(model, batch, state)))


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a scalar sum": (changed(lambda s: s._replace(total=s.total.sum())), ValueError, r"total .*\(4,\).*has shape \(\)"),
    "a scalar mean": (changed(lambda s: s._replace(total=s.total.mean())), ValueError, "divides by the number"),
    "a mean of one": (changed(lambda s: s._replace(total=s.total.mean()[None])), ValueError, r"has shape \(1,\)"),
    "not summed": (changed(lambda s: s._replace(total=s.total[:, None].expand(4, 5))), ValueError, r"\(4, 5\)"),
    "flat": (changed(lambda s: s._replace(total=s.total.repeat(5))), ValueError, r"has shape \(20,\)"),
    "rows lost": (changed(lambda s: s._replace(total=s.total[1:])), ValueError, r"\(4,\).*has shape \(3,\)"),
    "scalar nats": (
        changed(lambda s: s._replace(reported=s.reported.sum())),
        ValueError,
        r"reported .*\(4,\).*has shape \(\)",
    ),
    "detached": (changed(lambda s: s._replace(total=s.total.detach())), ValueError, "total has no gradient"),
    "half": (changed(lambda s: s._replace(total=s.total.bfloat16())), ValueError, "float32 or float64.*bfloat16"),
    "whole numbers": (
        changed(lambda s: s._replace(reported=s.reported.long())),
        ValueError,
        "reported .*float32.*int64",
    ),
    "a number": (changed(lambda s: s._replace(total=float(s.reported.sum()))), TypeError, "total .*tensor.*float"),
    "a tensor": (
        changed(lambda s: s.total),
        TypeError,
        r"Loss\(total, reported, state\).*but yields Tensor",
    ),
    "a tuple": (changed(tuple), TypeError, r"but yields tuple"),
    "nothing": (changed(lambda s: None), TypeError, r"but yields NoneType"),
    "a Loss returned": (returned(lambda s: s), TypeError, r"should yield .*, but returns Loss"),
    "a tensor returned": (returned(lambda s: s.total), TypeError, r"but returns Tensor"),
    "a mean returned": (returned(lambda s: s.total.mean()), TypeError, r"but returns Tensor"),
    "None returned": (returned(lambda s: None), TypeError, r"but returns NoneType"),
    "no state": (changed(lambda s: s._replace(state=None)), TypeError, r"state .*nest of tensors.*NoneType"),
    "half a state": (changed(lambda s: s._replace(state=(s.state, 3))), TypeError, r"state .*nest of tensors.*int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_is_refused_with_the_right_form(name: str, tmp_path: Path) -> None:
    objective, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as caught:
        toy.run(tmp_path, objective=objective)
    assert "yield Loss(nats, nats.detach(), state)" in str(caught.value)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_loss_that_no_parameter_has_a_part_in_is_refused(tmp_path: Path) -> None:
    free = torch.zeros(ROWS, requires_grad=True)
    with pytest.raises(ValueError, match="the loss reaches no parameter of Toy that learns"):
        toy.run(tmp_path, objective=changed(lambda s: s._replace(total=1.0 * free)))


def test_what_is_right_is_taken() -> None:
    for change in (
        lambda s: s._replace(total=s.total.double()),
        lambda s: s._replace(reported=s.total),  # not detached
        lambda s: s._replace(state=()),
    ):
        learner = Learner(toy.Toy(), changed(change), toy.Lanes(), FitSettings(max_steps=1, **toy.PLAIN))
        assert learner.step().loss > 0
        assert not learner.carried or not learner.carried["gru"][0].requires_grad


# ------------------------------------------------------------------------------------------------------------- targets


def batch(columns: int, lengths: Tensor | None, context: int = 0, steps: int = 6) -> TokenBatch:
    tokens = torch.zeros(3, steps, dtype=torch.int64)
    return TokenBatch(tokens, torch.zeros(3, columns, dtype=torch.int64), lengths, None, context, steps)


def test_targets_are_counted_not_words() -> None:
    lengths = torch.tensor([6, 2, 4])
    for columns in (1, 2, 5, 7):
        with pytest.raises(ValueError, match=rf"targets are \(3, {columns}\).*inputs .* 6 steps.*a `count` of its own"):
            _ = batch(columns, lengths).count
        with pytest.raises(ValueError, match="of its own"):
            _ = batch(columns, None, context=3).count
    assert batch(6, lengths).count == 12
    assert batch(6, lengths, context=3).count == 3 + 1
    assert batch(3, lengths, context=3).count == 3 + 1  # targets of the steps after the context alone
    assert batch(3, None, context=3).count == 9
    assert batch(1, None).count == 3  # one a row, and nothing says otherwise


@pytest.mark.parametrize("shape", [(), (3,)])
def test_targets_without_steps_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Batch: targets should be \(B, T\)"):
        _ = replace(batch(6, None), targets=torch.zeros(shape)).count


def test_targets_may_be_vectors() -> None:
    assert replace(batch(6, None), targets=torch.zeros(3, 6, 2)).count == 18


def test_fit_refuses_words_as_targets(tmp_path: Path) -> None:
    class Named(toy.Lanes):
        def batch(self, epoch: int, index: int) -> TokenBatch:
            found = super().batch(epoch, index)
            return replace(found, targets=found.targets[:, :1], lengths=torch.tensor([5, 1, 2, 3]))

    with pytest.raises(ValueError, match=r"Batch: targets are \(4, 1\)"):
        toy.run(tmp_path, batches=Named())


@pytest.mark.parametrize("count", [-1, 2.0, True, torch.tensor(3), None])
def test_a_count_is_a_whole_number(count: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True, eq=False)
    class Counted(TokenBatch):
        @property
        def count(self) -> int:
            return count  # type: ignore[no-any-return]

    class Own(toy.Lanes):
        def batch(self, epoch: int, index: int) -> TokenBatch:
            return Counted(**vars(super().batch(epoch, index)))

    with pytest.raises(ValueError, match=r"Counted\.count should be how many targets .*, a whole number ≥ 0, but is"):
        toy.run(tmp_path, batches=Own())


def test_generated_tasks_count_their_own_targets() -> None:
    assert Adding(20).batch(8).count == 8

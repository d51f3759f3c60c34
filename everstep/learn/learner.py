"""One optimizer step, and everything it changes, which is what a checkpoint must hold."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from everstep.data.batches import Batch, Batches, Divides
from everstep.errors import DataError, Diverged
from everstep.learn.averaging import Averaging
from everstep.learn.denormals import flushed_denormals
from everstep.learn.moves_itself import MovesItself
from everstep.learn.objective import Loss, Objective, begun, check_loss
from everstep.learn.optim import MakeOptimizer, make_optimizer, set_learning_rate, trainable
from everstep.learn.precision import multiplied, uses_bfloat16
from everstep.learn.rules import Rule, global_norm, gradients, scale_to_norm
from everstep.learn.schedules import Plateau, learning_rate
from everstep.learn.settings import FitSettings
from everstep.learn.weights import must_be_finite
from everstep.learn.world import World, check_divisible
from everstep.state import State, map_state

_REMEMBERED_NORMS = 10
_SETTLED = 0.1
"""Share of `max_minutes` after which the measured speed is reliable, because compilation is over."""
_NAMED_AT_MOST = 5
_ROW = "the loss of row"
_END = object()


@dataclass
class RunCounts:
    """The position of a run; stored as JSON in its checkpoint.

    Attributes:
        step: optimizer steps done.
        epoch: completed passes over the data.
        index: completed batches of this pass.
        tokens: targets seen.
        seconds: wall time up to the last checkpoint; see `Learner.seconds`.
        validated: the step of the last validation.
        valid: the cost of the last validation, lower is better (`Validation.cost`).
        best_valid: the lowest cost.
        best_loss: the loss of that validation, which breaks ties.
        best_step: the step of that validation.
        since_best: validations since the best one.
        clocked: whether the learning rate has followed the clock.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    tokens: int = 0
    seconds: float = 0.0
    validated: int | None = None
    valid: float | None = None
    best_valid: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    since_best: int = 0
    clocked: bool = False


class StepResult(NamedTuple):
    """One step: the reported loss summed over its targets, the learning rate, and the gradient norm if there is one."""

    loss: float
    norm: float | None
    rate: float


class _Piece(NamedTuple):
    batch: int  # its number in the epoch
    total: Tensor  # (B,) detached
    reported: Tensor  # (B,)


class Learner:
    """A model in training: optimizer, averages, carried state, counts, and the step that updates them."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[Any],
        batches: Batches[Any],
        settings: FitSettings,
        rules: Sequence[Rule] = (),
        optimizer: MakeOptimizer | None = None,
        world: World | None = None,
    ):
        if not len(batches):
            raise DataError("the training data gives no batch: it is shorter than one batch needs")
        self.world = world or World()
        check_divisible(self.world, model, batches)
        self.model = model
        self.objective = objective
        self.batches = batches
        self.settings = settings
        self.rules = rules
        self.optimizer = make_optimizer(model, settings, optimizer)
        self.averaging = Averaging(model, settings)
        self.plateau = Plateau()
        self.carried: State | None = None
        self.counts = RunCounts()
        self.norms: deque[float] = deque(maxlen=_REMEMBERED_NORMS)
        self.watched = must_be_finite(model)
        self.device = next(iter(trainable(model).values())).device
        self.bfloat16, self.notice = uses_bfloat16(settings.precision, self.device, multiplied(model))
        self.start_clock()

    def start_clock(self) -> None:
        """Start the clock at `counts.seconds`."""
        self._began = time.monotonic() - self.counts.seconds
        self._agreed = self.counts.seconds

    def exchanged(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over all processes, which agree on the leader's time as well."""
        own = time.monotonic() - self._began if self.world.leads else 0.0
        *found, self._agreed = self.world.largest([*numbers, own])
        return found

    @property
    def seconds(self) -> float:
        """Wall time in seconds over all resumed parts; of several processes, the time that they last agreed on."""
        return self._agreed if self.world.size > 1 else time.monotonic() - self._began

    @property
    def epoch(self) -> float:
        """Passes over the data, as a fraction."""
        return self.counts.epoch + self.counts.index / len(self.batches)

    @property
    def progress(self) -> float:
        """The schedule's argument in [0, 1]: the used share of `max_steps` or `max_epochs`, whichever is larger.

        If neither is set, or time will end the run first (`counts.clocked`), the used share of `max_minutes`.
        """
        return min(1.0, max(self._counted or 0.0, self._timed if self.counts.clocked else 0.0))

    @property
    def used(self) -> float:
        """The largest used share of any limit, at most 1; shown to the user."""
        return min(1.0, max(self._counted or 0.0, self._timed))

    @property
    def _counted(self) -> float | None:
        limits, used = self.settings, []
        if limits.max_steps is not None:
            used.append(self.counts.step / limits.max_steps)
        if limits.max_epochs is not None:
            used.append(self.epoch / limits.max_epochs)
        return max(used, default=None)

    @property
    def _timed(self) -> float:
        minutes = self.settings.max_minutes
        return 0.0 if minutes is None else self.seconds / (60 * minutes)

    def _look_at_the_clock(self) -> None:
        """If time will end the run before its steps do, let the schedule follow the clock from now on."""
        if self.settings.schedule not in ("cosine", "linear") or self.settings.max_minutes is None:
            return
        counted, timed = self._counted, self._timed
        self.counts.clocked |= counted is None or timed >= max(_SETTLED, counted)

    @flushed_denormals()
    def step(self) -> StepResult:
        """One optimizer step over `accumulate` batches (fewer at the end of an epoch), all targets weighted equally.

        Each of several processes computes the gradient of its rows; the sum is that of one process.

        Raises:
            Diverged: a loss or a gradient is not finite; the weights are unchanged.
            TypeError, ValueError: the objective yields no losses of the right form, or losses that do not depend on
                any trainable parameter.
        """
        group = self._group()
        count = int(self.world.summed([sum(map(_count, group.values()))])[0])
        if isinstance(self.model, MovesItself):
            return self._moved(self.model, group, count)
        self.optimizer.zero_grad(set_to_none=True)
        buffers = self._buffers()
        pieces = [piece for number, batch in group.items() for piece in self._backward(number, batch, count)]
        self.world.sum_gradients(self.model)
        for rule in self.rules:
            rule(self.model, self.counts.step)
        found = gradients(self.model)
        if not found:
            raise ValueError(f"the loss reaches no parameter of {type(self.model).__name__} that learns")
        norm = global_norm(found)
        total, plain, norm_value = self._numbers(pieces, norm, buffers)
        if not math.isfinite(total + plain + norm_value):
            raise Diverged(self._diagnosis(pieces))
        if self.settings.clip_norm is not None and norm_value > self.settings.clip_norm:  # skips a useless pass
            scale_to_norm(found, norm, self.settings.clip_norm)
        rate = self._move()
        self.norms.append(norm_value)
        self._advance(count)
        return StepResult(plain, norm_value, rate)

    def _numbers(self, pieces: list[_Piece], norm: Tensor, buffers: list[tuple[int, int]]) -> list[float]:
        """The loss, the reported loss and the gradient norm, the same numbers in all processes."""
        sums = [_sum([p.total for p in pieces], norm), _sum([p.reported for p in pieces], norm)]
        # The only device synchronisation of a step: three numbers at once.
        numbers: list[float] = torch.stack([*sums, norm.to(sums[0])]).tolist()
        if self.world.size == 1:
            return numbers
        # A norm of another machine may have other last bits, and the weights would drift apart.
        changed = buffers != self._buffers()
        *numbers, changes = self.world.summed([*numbers[:2], numbers[2] if self.world.leads else 0.0, changed])
        norm.fill_(numbers[2])
        if changes:
            self._share_buffers(buffers)
        return numbers

    def _buffers(self) -> list[tuple[int, int]]:
        """What changes with each change of a buffer; several processes compare it."""
        if self.world.size == 1:
            return []
        return [(id(buffer), buffer._version) for buffer in self.model.buffers()]

    def _share_buffers(self, before: list[tuple[int, int]]) -> None:
        """Give all processes the leader's values of the buffers that a step has changed, such as running statistics."""
        now = self._buffers()
        places = self.world.told([at for at, one in enumerate(now) if at >= len(before) or one != before[at]])
        every = list(self.model.buffers())
        self.world.copy_from_leader(every[at] for at in places)

    def _moved(self, model: MovesItself, group: dict[int, Batch], count: int) -> StepResult:
        """A step of a model that has a rule of its own."""
        rate = self._rate()
        loss = sum(float(model.move(batch.to(self.device), rate).double().sum()) for batch in group.values())
        if not math.isfinite(loss):
            where = f"training diverged at step {self.counts.step + 1} (epoch {self.counts.epoch + 1})"
            raise Diverged(f"{where}: the loss is {loss}. Lower learning_rate (now {rate:g})")
        self.averaging.update()
        self._advance(count)
        return StepResult(loss, None, rate)

    def _group(self) -> dict[int, Batch]:
        """The batches of a step by number, or this process's share of each that has rows for it."""
        numbers, epoch, share = range(self.counts.index, self._next), self.counts.epoch, self.world.share
        if share.of == 1 or not isinstance(self.batches, Divides):
            return {number: self.batches.batch(epoch, number) for number in numbers}
        parts = {number: self.batches.part(epoch, number, share) for number in numbers}
        return {number: part for number, part in parts.items() if part is not None}

    @property
    def _next(self) -> int:
        """The number of the first batch after this step."""
        return min(self.counts.index + self.settings.accumulate, len(self.batches))

    def _backward(self, number: int, batch: Batch, count: int) -> Iterator[_Piece]:
        """Backpropagate each piece of `batch`, its loss divided by the `count` targets of the whole step."""
        last = None
        for last in self._losses(batch):
            torch.autograd.backward(last.total.sum() / max(1, count))
            yield _Piece(number, last.total.detach(), last.reported.detach())
        if last is None:
            raise ValueError("the objective yielded no Loss for a batch; it must yield at least one")
        self.carried = map_state(self._kept, last.state) if self.batches.carries_state else None

    def _losses(self, batch: Batch) -> Iterator[Loss]:
        losses = begun(self.objective, self.model, batch.to(self.device), self.carried)
        while True:
            # Entered anew for each piece, so that backward runs outside autocast.
            with torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
                loss: Any = next(losses, _END)
            if loss is _END:
                return
            check_loss(loss, batch, self.batches.carries_state)
            yield loss

    def _kept(self, leaf: Tensor) -> Tensor:
        """A leaf of the carried state: detached, in float32, laid out as it would be after a resume."""
        low = self.bfloat16 and leaf.dtype == torch.bfloat16
        dtype = torch.float32 if low else leaf.dtype
        return leaf.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    def _rate(self) -> float:
        counts = self.counts
        self._look_at_the_clock()
        return learning_rate(self.settings, counts.step, counts.epoch, self.progress, self.plateau.factor)

    def _move(self) -> float:
        rate = self._rate()
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.averaging.update()
        return rate

    def _advance(self, count: int) -> None:
        self.counts.step += 1
        self.counts.tokens += count
        self.counts.index = self._next
        if self.counts.index >= len(self.batches):
            self.counts.epoch, self.counts.index, self.carried = self.counts.epoch + 1, 0, None

    def probe_state(self) -> State:
        """An example of the carried state, for its structure only; runs the objective on one batch."""
        batch = next(iter(self._group().values()))  # where state is carried, each process has rows of all
        *_, last = begun(self.objective, self.model, batch.to(self.device), None)
        check_loss(last, batch, self.batches.carries_state)
        state: State = last.state
        return state

    def _diagnosis(self, pieces: list[_Piece]) -> str:
        where = f"training diverged at step {self.counts.step + 1} (epoch {self.counts.epoch + 1})"
        said = [text.decode() for text in self.world.gathered(self._culprit(pieces).encode())]
        # Of several processes, one has the row; all others see no more than the sum.
        culprit = self.world.told(min(said, key=lambda text: not text.startswith(_ROW), default=""))
        return f"{where}: {culprit}. {self.advice()}"

    def advice(self) -> str:
        """Advice for the user after a divergence."""
        settings = self.settings
        norms = ", ".join(f"{norm:.4g}" for norm in self.norms) or "none"
        clip = "off" if settings.clip_norm is None else f"{settings.clip_norm:g}"
        return (
            f"Gradient norms of the steps before: {norms}. Try a lower learning_rate (now "
            f"{settings.learning_rate:g}) or a lower clip_norm (now {clip})"
        )

    def _culprit(self, pieces: list[_Piece]) -> str:
        for piece in pieces:
            losses = piece.total + piece.reported
            bad = (~losses.isfinite()).nonzero().flatten().tolist()
            if bad:
                value = float(losses[bad[0]])
                bad = [self.world.rank + row * self.world.size for row in bad]
                rows = ", ".join(map(str, bad[:_NAMED_AT_MOST])) + (", …" if len(bad) > _NAMED_AT_MOST else "")
                of = f" of {len(losses)}" if self.world.size == 1 else ""
                return f"{_ROW} {rows}{of} in batch {piece.batch} is {value}"
        bad = [n for n, p in trainable(self.model).items() if p.grad is not None and not _finite(p.grad)]
        if bad:
            names = ", ".join(bad[:_NAMED_AT_MOST]) + (", …" if len(bad) > _NAMED_AT_MOST else "")
            return f"the gradient of {names} is not finite"
        return "the sum of the losses or of the squared gradients is too large for its type"


def _finite(gradient: Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(values.isfinite().all())


def _sum(parts: list[Tensor], like: Tensor) -> Tensor:
    """The sum over all rows of all parts; of none, a zero beside `like`."""
    return torch.stack([rows.sum() for rows in parts]).sum() if parts else like.new_zeros(())


def _count(batch: Batch) -> int:
    if not callable(getattr(batch, "to", None)) or not hasattr(batch, "count"):
        raise TypeError(
            f"a batch should have a `count` of its targets and a `to(device)`, but is {type(batch).__name__}; make it "
            "a frozen dataclass that inherits from everstep.Movable, and give it a count"
        )
    count = batch.count
    if type(count) is not int or count < 0:
        raise ValueError(
            f"{type(batch).__name__}.count should be how many targets give a loss, a whole number ≥ 0, but is {count!r}"
        )
    return count

"""The base class of generated tasks, and streams of their batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.batches import TokenBatch

Array: TypeAlias = NDArray[Any]
Kind = Literal["number", "class", "bits"]
_LEARN, _HELD_OUT, _BASELINE = range(3)  # independent streams of random numbers
_BASELINE_ROWS = 256


@dataclass(frozen=True, eq=False)
class Sequences(TokenBatch):
    """A batch of vectors instead of tokens, with targets for the last K steps.

    Attributes:
        inputs: (B, T, D) float32.
        targets: (B, K) int64 classes, or (B, K, outputs) float32 numbers or bits, for the last K valid outputs.
    """

    @property
    def count(self) -> int:
        """The number of targets, B · K."""
        return self.targets.shape[0] * self.targets.shape[1]


class Drawn(NamedTuple):
    """Inputs (rows, T, D), targets (rows, K) or (rows, K, outputs), and lengths (rows,) or None, as numpy arrays."""

    inputs: Array
    targets: Array
    lengths: Array | None = None


class Problem:
    """A generated task. Subclasses are frozen dataclasses of its sizes.

    `problem.batch(rows, seed=…, epoch=…, index=…)` depends on the problem and its arguments alone.

    Attributes:
        input_size: features D of x_t.
        kind: "number" (squared error), "class" (nats) or "bits" (nats of all bits of a step).
        outputs: number of outputs, classes or bits at each of the last K steps.
        baseline: the mean loss of the best prediction that ignores the input: in nats for classes and bits; for numbers
            the variance of the targets, exact if known, else measured once on 256 sequences.
        judged: number of last steps among which `measure` counts wrong classes; None for all targets.
    """

    kind: ClassVar[Kind]

    @property
    def input_size(self) -> int:
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        raise NotImplementedError

    @property
    def judged(self) -> int | None:
        return None

    @property
    def baseline(self) -> float:
        return _variance(self)

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """Draw `rows` sequences with the generator `random`."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def batch(self, rows: int, *, seed: int = 0, epoch: int = 0, index: int = 0, held_out: bool = False) -> Sequences:
        """A batch of `rows` sequences: inputs (rows, T, D) and targets.

        Args:
            rows: number of sequences.
            seed: seed of the stream.
            epoch, index: position in the stream.
            held_out: whether to draw from a separate stream for evaluation.
        """
        drawn = self.draw(rows, _random(seed, _HELD_OUT if held_out else _LEARN, epoch, index))
        targets = torch.from_numpy(drawn.targets)
        return Sequences(
            inputs=torch.from_numpy(drawn.inputs).float(),
            targets=targets.long() if self.kind == "class" else targets.float(),
            lengths=None if drawn.lengths is None else torch.from_numpy(drawn.lengths).long(),
            resets=None,
            context=0,
            advance=0,
        )

    def stream(self, batch_size: int, seed: int = 0, batches: int = 1000) -> ProblemStream:
        """`Batches` for `fit`: `batches` new ones in each epoch."""
        return ProblemStream(self, batch_size, seed, batches)


@dataclass
class ProblemStream:
    """Endless different batches of a problem, for `fit`."""

    problem: Problem
    batch_size: int
    seed: int
    batches: int
    carries_state = False

    def __len__(self) -> int:
        return self.batches

    def batch(self, epoch: int, index: int) -> Sequences:
        """Batch `index` of `epoch`."""
        return self.problem.batch(self.batch_size, seed=self.seed, epoch=epoch, index=index)


def check_whole(who: Problem, name: str, value: object, least: int) -> None:
    """Raise a ValueError that names `who` and `name` unless `value` is a whole number ≥ `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{type(who).__name__}: {name} should be a whole number ≥ {least}, but is {value!r}")


def one_hot(symbols: Array, size: int) -> Array:
    """One-hot vectors (…, size) float32 of symbols (…,)."""
    vectors: Array = np.eye(size, dtype=np.float32)[symbols]
    return vectors


@lru_cache
def _variance(problem: Problem) -> float:
    if problem.kind == "class":
        return math.log(problem.outputs)
    targets = problem.draw(_BASELINE_ROWS, _random(0, _BASELINE, 0, 0)).targets
    return float(targets.reshape(-1, problem.outputs).astype(np.float64).var(0).mean())


def _random(*place: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(place))

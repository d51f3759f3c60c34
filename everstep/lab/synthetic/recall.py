"""Recall of symbols: all at the end, each after a delay, or by key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Drawn, Kind, Problem, check_whole, one_hot


@dataclass(frozen=True)
class CopyMemory(Problem):
    """The copy memory problem (Hochreiter & Schmidhuber 1997; in the form of Arjovsky 2016).

    N symbols of an alphabet of S, `lag` − 1 blanks, the signal, N blanks: T + 2N steps with T = `lag`. Targets are
    blanks until the signal, then the N symbols in order. Inputs are one-hot with S + 2 features: the symbols, the
    blank, the signal. The baseline, which knows the format but not the symbols, has N ln S / (T + 2N) nats per step.
    Only the last N steps are judged.

    >>> problem = CopyMemory(lag=100)
    >>> problem.batch(3).inputs.shape, round(problem.baseline, 4)
    (torch.Size([3, 120, 10]), 0.1733)

    Args:
        lag: T, the steps from a symbol to its position in the answer, minus N.
        symbols: S.
        length: N.

    Raises:
        ValueError: a lag or length below 1, or fewer than 2 symbols.
    """

    lag: int
    symbols: int = 8
    length: int = 10
    kind: ClassVar[Kind] = "class"

    def __post_init__(self) -> None:
        for name, least in (("lag", 1), ("symbols", 2), ("length", 1)):
            check_whole(self, name, getattr(self, name), least)

    @property
    def input_size(self) -> int:
        return self.symbols + 2

    @property
    def outputs(self) -> int:
        return self.symbols + 1

    @property
    def baseline(self) -> float:
        return self.length * math.log(self.symbols) / (self.lag + 2 * self.length)

    @property
    def judged(self) -> int:
        return self.length

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        blank, signal = self.symbols, self.symbols + 1
        symbols = random.integers(0, self.symbols, (rows, self.length))
        read = np.full((rows, self.lag + 2 * self.length), blank)
        asked = read.copy()
        read[:, : self.length] = symbols
        read[:, self.length + self.lag - 1] = signal
        asked[:, -self.length :] = symbols
        return Drawn(one_hot(read, self.input_size), asked)


@dataclass(frozen=True)
class Echo(Problem):
    """Every symbol is the target `lag` steps later: a_t = x_{t − lag}, for t ≥ lag.

    Needs a memory of `lag` symbols at any time, like a delay line. Inputs are one-hot; the baseline is ln S.

    >>> Echo(steps=20, lag=5).batch(3).targets.shape
    torch.Size([3, 15])

    Args:
        steps: T.
        lag: 1 … T − 1.
        symbols: S.

    Raises:
        ValueError: the lag is not shorter than the sequence, or a size is too small.
    """

    steps: int
    lag: int
    symbols: int = 8
    kind: ClassVar[Kind] = "class"

    def __post_init__(self) -> None:
        for name, least in (("steps", 2), ("lag", 1), ("symbols", 2)):
            check_whole(self, name, getattr(self, name), least)
        if self.lag >= self.steps:
            raise ValueError(
                f"Echo: the lag should be shorter than the sequence, but is {self.lag} of {self.steps} steps; "
                "nothing would be asked for"
            )

    @property
    def input_size(self) -> int:
        return self.symbols

    @property
    def outputs(self) -> int:
        return self.symbols

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        symbols = random.integers(0, self.symbols, (rows, self.steps))
        return Drawn(one_hot(symbols, self.symbols), symbols[:, : self.steps - self.lag])


@dataclass(frozen=True)
class AssociativeRecall(Problem):
    """Pairs of key and value, then one of the keys, whose value is the target (after Ba 2016, section 4.1).

    k₁ v₁ k₂ v₂ … k_P v_P, `lag` blanks, ?, k: 2P + lag + 2 steps. The keys of a sequence are distinct. Inputs are
    one-hot with `keys` + `values` + 2 features: keys, values, blank, question. The baseline is ln `values`.

    >>> AssociativeRecall(pairs=4, lag=10).batch(3).inputs.shape
    torch.Size([3, 20, 38])

    Args:
        pairs: P.
        lag: blanks before the question.
        keys: number of keys; the paper has 26 keys and 10 values.
        values: number of values.

    Raises:
        ValueError: there are more pairs than keys, or a size is too small.
    """

    pairs: int
    lag: int = 0
    keys: int = 26
    values: int = 10
    kind: ClassVar[Kind] = "class"

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("lag", 0), ("keys", 1), ("values", 2)):
            check_whole(self, name, getattr(self, name), least)
        if self.pairs > self.keys:
            raise ValueError(f"AssociativeRecall: {self.pairs} pairs need as many keys, but there are {self.keys}")

    @property
    def input_size(self) -> int:
        return self.keys + self.values + 2

    @property
    def outputs(self) -> int:
        return self.values

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        blank, question = self.keys + self.values, self.keys + self.values + 1
        keys = random.permuted(np.tile(np.arange(self.keys), (rows, 1)), axis=1)[:, : self.pairs]
        values = random.integers(0, self.values, (rows, self.pairs))
        asked = random.integers(0, self.pairs, (rows, 1))
        read = np.full((rows, 2 * self.pairs + self.lag + 2), blank)
        read[:, 0 : 2 * self.pairs : 2], read[:, 1 : 2 * self.pairs : 2] = keys, values + self.keys
        read[:, -2], read[:, -1:] = question, np.take_along_axis(keys, asked, 1)
        return Drawn(one_hot(read, self.input_size), np.take_along_axis(values, asked, 1))

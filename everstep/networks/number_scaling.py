"""What a model of sequences of numbers learns from its data besides weights: columns, shape, scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everstep.errors import DataError, RunError
from everstep.storage.reading import json_text, parse_json, read_small, reason

Scaled = Literal["each", "all", "none"]
LARGEST = 1 << 26
_LEAST = 1e-10  # a spread below it, relative to the largest number, is none


@dataclass(frozen=True)
class NumberScaling:
    """The scaling of the numbers of a step: (x − shift) / scale.

    Attributes:
        columns: the names of the numbers of a step; empty for frames.
        shape: of a step: (D,), or (height, width, channels).
        shift, scale: one for each number of a step, or one for all.
        gaps: whether numbers are missing in training; the network then also reads which are.
    """

    columns: tuple[str, ...]
    shape: tuple[int, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    gaps: bool

    @classmethod
    def fitted(
        cls, sequences: Sequence[NDArray[Any]], columns: tuple[str, ...], shape: tuple[int, ...], scaled: Scaled
    ) -> NumberScaling:
        """Fit mean and standard deviation to sequences (T, *shape); NaN marks a missing number.

        Args:
            sequences: of the training split.
            columns, shape: see the class.
            scaled: each: every number of a step by itself; all: all together, as of images; none: shift 0, scale 1.

        Example:
            >>> one = np.array([[1.0, 5.0], [3.0, np.nan]])
            >>> NumberScaling.fitted([one], ("x", "y"), (2,), "each")
            NumberScaling(columns=('x', 'y'), shape=(2,), shift=(2.0, 5.0), scale=(1.0, 1.0), gaps=True)
        """
        size = math.prod(shape) if scaled == "each" else 1
        count, total, squares, largest = (np.zeros(size) for _ in range(4))
        gaps = False
        for one in sequences:
            rows = one.reshape(-1, size).astype(np.float64)
            there = ~np.isnan(rows)
            known = np.where(there, rows, 0)
            gaps = gaps or not there.all()
            count += there.sum(0)
            total += known.sum(0)
            np.maximum(largest, np.abs(known).max(0, initial=0), out=largest)
        if scaled == "none":
            return cls(columns, shape, (0.0,), (1.0,), gaps)
        mean = total / np.maximum(count, 1)
        for one in sequences:  # about the mean, since squares of large numbers near one another would cancel
            squares += np.nansum(np.square(one.reshape(-1, size) - mean), 0)
        spread = np.sqrt(squares / np.maximum(count, 1))
        spread = np.where(spread > _LEAST * largest, spread, 1.0)
        return cls(columns, shape, tuple(mean.tolist()), tuple(spread.tolist()), gaps)

    @property
    def size(self) -> int:
        """The numbers of a step."""
        return math.prod(self.shape)

    @property
    def frames(self) -> bool:
        """Whether a step is a frame."""
        return len(self.shape) == 3

    @property
    def centred(self) -> bool:
        """Whether 0 is read where a number is the mean of training."""
        return any(self.shift)

    def scaled(self, steps: NDArray[Any]) -> NDArray[np.float32]:
        """Steps (T, *shape) as the network reads them, float32.

        Raises:
            DataError: a number lies so far from those of training that float32 cannot hold it.
        """
        rows = steps.reshape(len(steps), self.size)
        with np.errstate(over="ignore"):
            found: NDArray[np.float32] = ((rows - np.array(self.shift)) / np.array(self.scale)).astype(np.float32)
        if np.isinf(found).any():
            raise DataError(
                f"expected numbers like those of training; got {rows[np.isinf(found)][0]:g}, which is too far from them"
            )
        return found.reshape(-1, *self.shape)

    def restored(self, steps: NDArray[Any]) -> NDArray[np.float64]:
        """Steps (…, size) of the network in units of the data."""
        found: NDArray[np.float64] = steps * np.array(self.scale) + np.array(self.shift)
        return found

    def to_bytes(self) -> bytes:
        """The content as JSON in UTF-8."""
        return (json_text(asdict(self), ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> NumberScaling:
        """Read a file that `to_bytes` wrote.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            raw = parse_json(read_small(path, LARGEST))
            given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
            return cls(**given)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: missing or damaged ({reason(error)})") from None

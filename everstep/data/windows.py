"""Windows of series: input steps and the target steps that follow them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable, RowBatches
from everstep.data.calendar import calendar
from everstep.data.panel import Ints, Panel
from everstep.errors import DataError

BLOCK = 1 << 18
"""Windows that are checked at once."""


@dataclass(frozen=True, eq=False)
class WindowBatch(Movable):
    """B windows of W input steps and H target steps. NaN marks a missing value.

    Attributes:
        values: (B, W) float32 inputs; steps before the start of a series are missing.
        past: (B, W, P) covariates known up to the present; 0 where they are missing.
        future: (B, W + H, F) covariates known ahead of time, then static ones, then of irregular series the time since
            the row before and the time from the last input, ln(1 + t / `usual_gap`) each, calendar features last; 0
            where they are missing.
        target: (B, H) float32 targets.
        series: (B,) int64 series numbers.
        count: the number of targets that are not missing.
    """

    values: Tensor
    past: Tensor
    future: Tensor
    target: Tensor
    series: Tensor
    count: int

    @property
    def rows(self) -> int:
        """The number of windows, B."""
        return len(self.series)

    def numbered(self, series: Tensor) -> WindowBatch:
        """The same batch with other series numbers (B,) int64."""
        return replace(self, series=series)


class Windows(RowBatches[WindowBatch]):
    """Batches of windows of a panel. An epoch has each window once, in an order fixed by the seed and the epoch.

    Windows without an input value or without a target value are left out, unless `every` is true.

    Args:
        panel: the series, normalised for the network.
        first, last: (S,) the row where the targets of the first and the last window of each series begin. A series
            with last < first has no window.
        stops: (S,) the row where the targets of each series end (exclusive).
        window, horizon: the number of input steps W and of target steps H.
        batch_size: the number of windows in a batch.
        calendar: whether to add calendar features to the future covariates.
        seed: the seed of the random order; None keeps the order of the series.
        stride: the number of steps from one window to the next.
        every: also keep windows without inputs or targets, as prediction needs.
        usual_gap: the unit of the times of irregular series.

    Example:
        >>> from everstep.data.panel import as_panel
        >>> from everstep.data.readers.time_stamps import Frequency
        >>> none, ones = np.zeros((5, 0)), np.zeros(5, np.int64)
        >>> panel = as_panel(["a"], ones, np.arange(5), Frequency("step", 1), (np.arange(5.0), none, none))
        >>> windows = Windows(panel, np.array([2]), np.array([3]), panel.known, window=3, horizon=2, batch_size=8)
        >>> windows.batch(0, 0).values.tolist(), windows.batch(0, 0).target.tolist()
        ([[nan, 0.0, 1.0], [0.0, 1.0, 2.0]], [[2.0, 3.0], [3.0, 4.0]])
    """

    def __init__(
        self,
        panel: Panel,
        first: Ints,
        last: Ints,
        stops: Ints,
        *,
        window: int,
        horizon: int,
        batch_size: int,
        calendar: bool = False,
        seed: int | None = None,
        stride: int = 1,
        every: bool = False,
        usual_gap: float = 1.0,
    ):
        self.panel, self.window, self.horizon, self.batch_size, self._seed = panel, window, horizon, batch_size, seed
        self._stops, self._gap = stops, usual_gap
        counts = np.maximum((last - first) // stride + 1, 0)
        series = np.repeat(np.arange(len(panel)), counts)
        inside = np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = first[series] + inside * stride
        if not every:
            kept = self._useful(series, rows)
            if not kept.all():
                series, rows = series[kept], rows[kept]
        self.series, self.rows = series, rows
        self._target = panel.target.astype(np.float32)
        self._past, self._future, self._static = (
            np.nan_to_num(part).astype(np.float32) for part in (panel.past, panel.future, panel.static)
        )
        self._calendar: NDArray[np.float32] | None = None
        self._from = int(panel.first.min(initial=0)) - window
        if calendar:
            self._calendar = self._table()
        self._order: tuple[int, Ints] = (-1, np.zeros(0, np.int64))

    def _useful(self, series: Ints, rows: Ints) -> NDArray[np.bool_]:
        """Whether each window has a value to read and one to predict."""
        panel = self.panel
        seen = np.concatenate([[0], np.cumsum(~np.isnan(panel.target))])
        stops = panel.starts + np.minimum(self._stops, panel.known)
        found = np.empty(len(rows), np.bool_)
        for first in range(0, len(rows), BLOCK):  # so that memory is that of the answer
            part = slice(first, first + BLOCK)
            begin, end = panel.starts[series[part]], stops[series[part]]
            at = begin + rows[part]
            read = seen[np.minimum(at, end)] > seen[np.maximum(at - self.window, begin)]
            found[part] = read & (seen[np.minimum(at + self.horizon, end)] > seen[np.minimum(at, end)])
        return found

    def _table(self) -> NDArray[np.float32]:
        if self.panel.times is not None:
            return calendar(self.panel.frequency, self.panel.times)
        end = int((self.panel.first + self.panel.rows).max()) + self.horizon
        return calendar(self.panel.frequency, np.arange(self._from, end))

    @property
    def number(self) -> int:
        """The number of windows."""
        return len(self.rows)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.number // self.batch_size)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the windows of a batch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return np.arange(self.number)[part] if self._seed is None else self._ordered(epoch)[part]

    def _ordered(self, epoch: int) -> Ints:
        if self._order[0] != epoch:
            random = np.random.Generator(np.random.PCG64([self._seed or 0, epoch]))
            self._order = (epoch, random.permutation(self.number))
        return self._order[1]

    def made_of(self, windows: Ints) -> WindowBatch:
        """The batch of the windows with these numbers, (B,)."""
        panel, series, rows = self.panel, self.series[windows], self.rows[windows]
        steps = rows[:, None] + np.arange(-self.window, self.horizon)
        limits = panel.known[series].repeat(self.window + self.horizon).reshape(steps.shape)
        limits[:, self.window :] = np.minimum(limits[:, self.window :], self._stops[series][:, None])
        values = self._taken(self._target, series, steps, limits, np.nan)
        every = panel.rows[series][:, None]
        past = self._taken(self._past, series, steps[:, : self.window], every, 0)
        future = self._taken(self._future, series, steps, every, 0)
        if self._static.shape[1]:
            future = np.concatenate([future, self._static[series][:, None].repeat(steps.shape[1], 1)], -1)
        if panel.times is not None:
            future = np.concatenate([future, self._passed(series, rows)], -1)
        if self._calendar is not None:
            at = panel.first[series][:, None] + steps - self._from if panel.times is None else self._rows(series, steps)
            future = np.concatenate([future, self._calendar[at]], -1)
        target = values[:, self.window :]
        count = int((~np.isnan(target)).sum())
        read, before, ahead, came = (
            torch.from_numpy(np.ascontiguousarray(part)) for part in (values[:, : self.window], past, future, target)
        )
        return WindowBatch(read, before, ahead, came, torch.from_numpy(series), count)

    def _rows(self, series: Ints, steps: Ints) -> Ints:
        """The rows of the panel at steps of each series; steps outside give the nearest row."""
        panel = self.panel
        found: Ints = panel.starts[series][:, None] + np.clip(steps, 0, panel.rows[series][:, None] - 1)
        return found

    def _passed(self, series: Ints, rows: Ints) -> NDArray[np.float32]:
        """The time since the row before and the time from the last input, of each step, (B, W + H, 2)."""
        assert self.panel.times is not None
        steps = rows[:, None] + np.arange(-self.window - 1, self.horizon)
        return passed(self.panel.times[self._rows(series, steps)], self.window, self._gap)

    def _taken(
        self, values: NDArray[np.float32], series: Ints, steps: Ints, limits: Ints, filling: float
    ) -> NDArray[np.float32]:
        """The rows `steps` of each series, with `filling` for steps outside 0 … limits − 1."""
        inside = (steps >= 0) & (steps < limits)
        at = np.where(inside, self.panel.starts[series][:, None] + steps, 0)
        found: NDArray[np.float32] = values[at] if len(values) else np.zeros((*at.shape, *values.shape[1:]), np.float32)
        found[~inside] = filling
        return found


def passed(times: Ints, window: int, gap: float) -> NDArray[np.float32]:
    """The time since the row before and the time from the last input, ln(1 + t / gap), of each step, (B, W + H, 2).

    Args:
        times: (B, 1 + W + H) the time stamps of the steps and of the row before them.
        window: W.
        gap: the unit.

    >>> passed(np.array([[0, 1, 3]]), 1, 1.0).astype(float).round(2).tolist()
    [[[0.69, 0.0], [1.1, 1.1]]]
    """
    since, away = np.diff(times, axis=1), np.abs(times[:, 1:] - times[:, [window]])
    return np.log1p(np.stack([since, away], 2) / gap).astype(np.float32)


def check_some(windows: Windows, split: str, key: str) -> None:
    """Check that a split has a window.

    Raises:
        DataError: the split has no window; the message states the required length.
    """
    if not windows.number:
        longest = int(windows.panel.known.max(initial=0))
        raise DataError(
            f"{split}: no series is long enough: a window needs a value to read and one of the {windows.horizon} that "
            f"follow (model.horizon), beside the parts that are held out ({key}); the longest "
            f"series has {longest:,} rows"
        )

"""SIGINT and SIGTERM as requests to stop at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Within a `with` block, SIGINT and SIGTERM are stored in `caught` instead of ending the process.

    Further signals have no effect: a terminal and a wrapper often deliver the same Ctrl-C twice, and the second must
    not abort a save. Outside the main thread, where Python allows no handlers, the block changes nothing.

    Attributes:
        caught: number of the first signal received, or None.

    Example:
        >>> with StopSignals(print) as signals:
        ...     signals.caught is None
        True
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._before: dict[int, Any] = {}
        self.caught: int | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.caught is None:
            self.caught = number
            with suppress(RuntimeError):  # the signal interrupted a write to the same stream
                self._say(f"{signal.Signals(number).name}: finishing this step, then saving")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

"""`metrics.jsonl`, one JSON object per line, and optionally the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from everstep.errors import ConfigError, RunError
from everstep.storage import files
from everstep.storage.reading import LARGEST_RECORDS, json_text, read_small, reason

METRICS_FILE = "metrics.jsonl"
_BOARD = "tensorboard"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, oldest first, without a line damaged by a crash; empty if there is no file.

    Raises:
        RunError: the file cannot be read, or is not a regular file.
    """
    try:
        lines = read_small(path, LARGEST_RECORDS).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}; move it away") from None
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class Metrics:
    """Appends records to `OUT/metrics.jsonl`; existing records later than step `after` are cut off first.

    Raises:
        RunError: the file cannot be written.
        ConfigError: `tensorboard` is true and not installed.
    """

    def __init__(self, out: Path, after: int, tensorboard: bool):
        self._path = out / METRICS_FILE
        kept = [record for record in read_metrics(self._path) if record["step"] <= after]
        with files.explained(out):
            files.replace_file(self._path, b"".join(map(_line, kept)))
            files.refuse_link(out / _BOARD)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | files.BINARY)
        self._board = _tensorboard(out / _BOARD, after + 1) if tensorboard else None

    def record(self, values: dict[str, Any]) -> None:
        """Append one record, which must hold "step"."""
        with files.explained(self._path.parent):
            files.write_all(self._descriptor, _line(values))
        if self._board is not None:
            for name in values.keys() - {"step"}:
                self._board.add_scalar(name, values[name], values["step"])

    def close(self) -> None:
        """Close the files."""
        os.close(self._descriptor)
        if self._board is not None:
            self._board.close()


class Unwritten:
    """The metrics of a process that leaves writing to another."""

    def record(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _line(record: dict[str, Any]) -> bytes:
    return (json_text(record) + "\n").encode()


def _tensorboard(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "train.tensorboard needs a package that is not installed: pip install 'everstep[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=purge_step)

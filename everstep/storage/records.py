"""Files of records, one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from everstep.errors import RunError
from everstep.storage.files import replace_file
from everstep.storage.reading import LARGEST_RECORDS, json_text, parse_json, read_small, reason

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a file in order; none if there is no file.

    Raises:
        RunError: the file cannot be read, or is damaged.
    """
    try:
        lines = read_small(path, LARGEST_RECORDS).splitlines() if path.exists() else []
        return [parse_json(line) for line in lines]
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete the line that is not JSON, then go on") from None


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace the file by these records atomically."""
    replace_file(path, "".join(json_text(record) + "\n" for record in records).encode())

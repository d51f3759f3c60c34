"""Files of sequences of numbers: tables, rows, `.npz`, the `.ts` files of the UCR/UEA archive, and IDX."""

from __future__ import annotations

import gzip
import io
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.number_lines import archive_line, fields_of, number, steps_of
from everstep.data.readers.number_tables import found_in_table
from everstep.data.readers.tables import MISSING, read_table
from everstep.data.text.text_files import open_text
from everstep.errors import DataError

NumberFormat = Literal["auto", "long", "rows", "npz", "ts", "idx"]
_IDX = re.compile(r"[.-]idx\d-ubyte")


@dataclass(frozen=True)
class NumberColumns:
    """What a file of sequences holds where; None: what is usual.

    Attributes:
        values: columns of numbers; of `.npz`, the array.
        label: the column or array of the classes; None: there are no classes.
        id, step: of a long table, the columns that name the sequence and that order its rows.
        step_size: numbers of a step; None: as in the file.
    """

    values: tuple[str, ...] | None = None
    label: str | None = "label"
    id: str | None = None
    step: str | None = None
    step_size: int | None = None


class FoundSequence(NamedTuple):
    """A sequence: its name, its steps (T, …) with NaN where a number is missing, its class and its first line."""

    name: str
    steps: NDArray[Any]
    label: str
    line: int


class FoundNumbers(NamedTuple):
    """The sequences of a file, the names of the numbers of a step, and notes on suspicious input."""

    sequences: Sequence[FoundSequence]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


def plain_name(path: Path) -> str:
    """The name of a file in lower case, without a suffix of compression."""
    return path.name.lower().removesuffix(".gz").removesuffix(".xz")


def format_of(path: Path) -> NumberFormat:
    """The format of a file by its name: npz, ts, idx, else long."""
    name = plain_name(path)
    for ending in (".npz", ".ts"):
        if name.endswith(ending):
            return "npz" if ending == ".npz" else "ts"
    return "idx" if _IDX.search(name) else "long"


def found_numbers(path: Path, columns: NumberColumns, format: NumberFormat = "auto") -> FoundNumbers:
    """Read a file; see `read_numbers`.

    Raises:
        DataError: the file cannot be read or used.
    """
    kind = format_of(path) if format == "auto" else format
    if kind == "long":
        roles = (columns.values, columns.label, columns.id, columns.step)
        rows, names, notes = found_in_table(read_table(path), str(path), *roles)
        found = FoundNumbers([FoundSequence(*row) for row in rows], names, notes)
    else:
        found = {"rows": _rows, "npz": _arrays, "ts": _archive, "idx": _images}[kind](path, columns)
    size = columns.step_size
    if size is None or kind == "rows":
        return found
    cut = [one._replace(steps=steps_of(one.steps, size, f"{path}, {one.name}")) for one in found.sequences]
    return FoundNumbers(cut, _numbered(size), found.notes)


def _numbered(size: int) -> tuple[str, ...]:
    return tuple(str(place) for place in range(size))


def without_end(steps: NDArray[Any]) -> NDArray[Any]:
    """The steps without those at the end at which every number is missing: padding of a ragged table."""
    if steps.dtype.kind != "f":
        return steps
    there = np.flatnonzero(~np.isnan(steps.reshape(len(steps), math.prod(steps.shape[1:]))).all(1))
    return steps[: there[-1] + 1 if len(there) else 0]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_text(path) as file:
        try:
            yield from ((place, line.rstrip("\n")) for place, line in enumerate(file, 1) if line.strip())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected text in UTF-8; {error.reason} at byte {error.start}") from None


def _rows(path: Path, columns: NumberColumns) -> FoundNumbers:
    """A sequence a row: its numbers in order, and its class in one column."""
    lines = _lines(path)
    _, first = next(lines, (0, ""))
    head = fields_of(first)
    named = _is_head(head, columns)
    label = _place(columns.label, head if named else None, len(head), f"{path}")
    if columns.values is None:
        taken = [place for place, name in enumerate(head) if place != label and not (named and not name)]
    else:
        taken = [_place(name, head if named else None, len(head), f"{path}") or 0 for name in columns.values]
    size = columns.step_size or 1
    found = []
    for line, text in lines if named else [(1, first), *lines]:
        where, fields = f"{path}, line {line}", fields_of(text)
        if len(fields) != len(head):
            raise DataError(f"{where}: expected {len(head)} fields, as in the first line; got {len(fields)}")
        values = np.array([number(fields[place], where) for place in taken], np.float64)
        steps = without_end(steps_of(values, size, where))
        found.append(FoundSequence(f"line {line}", steps, "" if label is None else fields[label], line))
    return FoundNumbers(found, _numbered(size))


def _is_head(fields: Sequence[str], columns: NumberColumns) -> bool:
    """Whether a first row names the columns: it has a name that is asked for, or no number where numbers are read."""
    asked = [name for name in (columns.label, *(columns.values or ())) if name is not None]
    if any(is_text(name) and name in fields for name in asked):
        return True
    places = [int(name) for name in asked if name.removeprefix("-").isdigit() and int(name) < len(fields)]
    read = [fields[place] for place in places[columns.label is not None :]] if columns.values else fields
    return sum(map(is_text, fields)) > 1 and all(map(is_text, read))


def is_text(field: str) -> bool:
    """Whether a field is neither a number nor marks a missing one.

    >>> is_text("step"), is_text("1e3"), is_text("?")
    (True, False, False)
    """
    try:
        float(field)
    except ValueError:
        return field not in MISSING
    return False


def _place(name: str | None, head: Sequence[str] | None, width: int, where: str) -> int | None:
    """The index of a column that is named, or numbered from 0, or from the end with a minus."""
    if name is None:
        return None
    if head is not None and name in head:
        return head.index(name)
    if name.removeprefix("-").isdigit() and -width <= int(name) < width:
        return int(name) % width
    there = ", ".join(map(repr, head[:12])) if head is not None else f"no names, but {width} columns"
    raise DataError(
        f"{where}: expected the column {name!r} (data.label, data.values); there are {there}; columns without names "
        "are numbers, 0 for the first and -1 for the last"
    )


def _archive(path: Path, columns: NumberColumns) -> FoundNumbers:
    """A file of the UCR/UEA archive (Bagnall 2018): a header of @ lines, then a sequence a line."""
    head: dict[str, str] = {}
    found: list[FoundSequence] = []
    dimensions: int | None = None
    begun = False
    for line, text in _lines(path):
        where = f"{path}, line {line}"
        if text.startswith(("#", "%")):
            continue
        if not begun:
            key, _, value = text.removeprefix("@").partition(" ")
            head[key.lower()] = value.strip()
            begun = key.lower() == "data"
            if begun:
                _check_head(head, str(path), columns.label is not None)
            continue
        labelled = head.get("classlabel", "").lower().startswith("true")
        steps, label = archive_line(text, dimensions, labelled, where)
        dimensions = steps.shape[1]
        found.append(FoundSequence(f"line {line}", steps, label, line))
    if not begun:
        raise DataError(f"{path}: expected a line @data, and a series a line after it; there is none")
    return FoundNumbers(found, _numbered(dimensions or 1))


def _check_head(head: dict[str, str], path: str, labelled: bool) -> None:
    if head.get("timestamps", "").lower().startswith("true"):
        raise DataError(f"{path}: expected @timeStamps false; got true; take the time stamps out of the file")
    if labelled and not head.get("classlabel", "").lower().startswith("true"):
        raise DataError(f"{path}: expected @classLabel true and the classes; got {head.get('classlabel') or 'none'}")


def _content(path: Path) -> bytes:
    try:
        with open_text(path) as file:
            return file.buffer.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _arrays(path: Path, columns: NumberColumns) -> FoundNumbers:
    """`x` (N, T), (N, T, D) or clips (N, T, H, W[, C]), `y` (N,), and `lengths` (N,) if they differ."""
    held = held_arrays(path)
    if columns.values and len(columns.values) > 1:
        raise DataError(f"{path}: expected one array (data.values); got {', '.join(columns.values)}")
    x = _array(held, columns.values or ("x", "X"), path, "data.values")
    if not x.size:
        raise DataError(f"{path}: expected a sequence or more, of a step or more; got an empty array {x.shape}")
    if x.ndim not in (2, 3, 4, 5) or x.dtype.kind not in "iufb":
        raise DataError(
            f"{path}: expected numbers (sequences, steps), (sequences, steps, values) or clips (sequences, steps, "
            f"height, width[, channels]); got {x.dtype} {x.shape}"
        )
    if x.dtype.kind == "f" and len(bad := np.flatnonzero(np.isinf(x.reshape(len(x), -1)).any(1))):
        raise DataError(f"{path}, sequence {bad[0]}: expected finite numbers, and NaN where one is missing; got an "
                        f"infinity ({len(bad):,} such sequences)")  # fmt: skip
    x = x[..., None] if x.ndim in (2, 4) else x
    labels = [""] * len(x)
    if columns.label is not None:
        others = ["y", "labels"] if columns.label == "label" else []  # a name that was chosen is meant
        given = _a_sequence(_array(held, [columns.label, *others], path, "data.label"), len(x), f"{path}", "label")
        labels = [_as_label(one) for one in given.tolist()]
    lengths = _a_sequence(held["lengths"], len(x), f"{path}", "length") if "lengths" in held else None
    if lengths is not None and not (lengths.dtype.kind in "iu" and ((lengths >= 0) & (lengths <= x.shape[1])).all()):
        raise DataError(f"{path}: expected lengths from 0 to the {x.shape[1]} steps; got {lengths.dtype} up to "
                        f"{lengths.max(initial=0)}")  # fmt: skip
    cut = [without_end(one) for one in x] if lengths is None else [o[:n] for o, n in zip(x, lengths, strict=True)]
    found = [FoundSequence(f"sequence {p}", o, labels[p], p) for p, o in enumerate(cut)]
    return FoundNumbers(found, _numbered(x.shape[2]) if x.ndim == 3 else ())


OBJECTS = "got no such file, or one of Python objects: sequences of different lengths are padded, beside `lengths`"


def _array(held: dict[str, NDArray[Any]], names: Sequence[str], path: Path, key: str) -> NDArray[Any]:
    name = next((name for name in names if name in held), None)
    if name is None:
        raise DataError(f"{path}: expected an array {' or '.join(names)} ({key}); it has {', '.join(held) or 'none'}")
    return held[name]


def held_arrays(path: Path, objects: str = OBJECTS) -> dict[str, NDArray[Any]]:
    """The arrays of a file of `numpy.savez`, plain or compressed; `objects`: what to say of Python objects.

    Raises:
        DataError: it is no such file, or holds objects.
    """
    told = "expected arrays of numpy.savez, numbers and text alone"
    try:
        found = np.load(io.BytesIO(_content(path)), allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: {told}; got a single one, as of numpy.save")
        with found as file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError, OSError, zlib.error) as error:
        # NumPy advises to unpickle, which runs what the file says.
        raise DataError(f"{path}: {told}; {objects if 'pickle' in str(error) else error}") from None


def _a_sequence(found: NDArray[Any], many: int, path: str, what: str) -> NDArray[Any]:
    """An array with an entry a sequence, (N,); (N, 1) is legal too."""
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.shape != (many,):
        came = f"{len(found):,}" if found.ndim == 1 else f"an array {found.shape}"
        hint = "; of several numbers a sequence take the place of the largest" if what == "label" else ""
        raise DataError(f"{path}: expected as many {what}s as sequences, {many:,}; got {came}"
                        f"{hint if found.ndim == 2 else ''}")  # fmt: skip
    return found


def _as_label(value: Any) -> str:
    """The class as it is written; nothing, which is refused, of NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _images(path: Path, columns: NumberColumns) -> FoundNumbers:
    """Images in IDX (LeCun 1998), a row of pixels a step; the classes in the file of the same name with labels-idx1."""
    images = read_idx(path, 3)
    labels = [""] * len(images)
    if columns.label is not None:
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        labels = [str(label) for label in read_idx(beside, 1).tolist()]
    if len(labels) != len(images):
        raise DataError(f"{path}: expected as many labels as images, {len(images):,}; got {len(labels):,}")
    found = [FoundSequence(f"image {p}", o, labels[p], p) for p, o in enumerate(images)]
    return FoundNumbers(found, _numbered(images.shape[2]))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, plain or packed by gzip.

    Raises:
        DataError: the file is missing, damaged, or not one of bytes in so many dimensions.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected an IDX file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); get it again") from None
    size = 4 * (1 + dimensions)
    header = np.frombuffer(data[:size].ljust(size, b"\0"), ">u4")
    shape = tuple(int(side) for side in header[1:])
    if header[0] != 0x0800 + dimensions or len(data) != size + math.prod(shape):
        raise DataError(f"{path} is damaged or no IDX file of unsigned bytes in {dimensions} dimensions; get it again")
    return np.frombuffer(data, np.uint8, offset=size).reshape(shape)

"""Pieces of music as chords: text, JSON and MIDI files.

A piece is a list of steps, and a step the keys that sound, as rising MIDI numbers (60 is the middle C). As text, the
keys of a step are joined by commas, steps by spaces, and a step of silence is "-": `60,64,67 60,65,69 - 67`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from everstep.data.readers.midi import is_midi, midi_piece
from everstep.data.text.text_files import file_lines, read_blocks
from everstep.errors import DataError
from everstep.storage.reading import parse_json

Chord: TypeAlias = tuple[int, ...]
Piece: TypeAlias = list[Chord]
HIGHEST = 127
SILENCE = "-"


def chords_text(piece: Iterable[Chord]) -> str:
    """A piece as text.

    >>> chords_text([(60, 64), (), (62,)])
    '60,64 - 62'
    """
    return " ".join(",".join(map(str, chord)) or SILENCE for chord in piece)


def chords_of(text: str, where: str) -> Piece:
    """A piece from text; `where` it stands, for errors.

    >>> chords_of("64,60 - 62", "t.txt")
    [(60, 64), (), (62,)]

    Raises:
        DataError: a step is neither keys nor silence.
    """
    return [_chord(step, f"{where}, step {number}") for number, step in enumerate(text.split(), 1)]


def _chord(step: str, where: str) -> Chord:
    keys = [] if step == SILENCE else step.split(",")
    if not all(key.isascii() and key.isdecimal() and int(key[:9]) <= HIGHEST for key in keys):
        raise DataError(f"{where}: expected keys 0 to {HIGHEST} joined by commas, such as 60,64,67, or - for silence; "
                        f"got {step[:40]!r}")  # fmt: skip
    return tuple(sorted({int(key) for key in keys}))


def read_pieces(path: Path, part: str, steps_per_beat: int = 1, encoding: str = "utf-8") -> list[Piece]:
    """The pieces of a file, those without a step left out.

    A MIDI file (`is_midi`) holds one piece (`midi_piece`). `.json` holds a list of pieces, each a list of steps, each a
    list of keys, of which negative ones are voices that pause; or an object with such a list for each part. Any other
    file is text, a piece a line.

    Args:
        path: the file.
        part: the part to read, where a JSON file has parts: "train", "valid", "test".
        steps_per_beat: steps of a quarter note, for MIDI.
        encoding: Python's name of the encoding, for text and JSON.

    Raises:
        DataError: the file cannot be read, or has no such part.
    """
    if is_midi(path):
        found = [midi_piece(path, steps_per_beat)]
    elif path.name.lower().removesuffix(".gz").removesuffix(".xz").endswith(".json"):
        found = list(_json_pieces(path, part, encoding))
    else:
        lines = enumerate(file_lines(path, encoding), 1)
        found = [chords_of(line, f"{path}, line {number}") for number, line in lines]
    return [piece for piece in found if piece]


def _json_pieces(path: Path, part: str, encoding: str) -> Iterator[Piece]:
    try:
        given: Any = parse_json("".join(read_blocks(path, encoding)))
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error})") from None
    where = str(path)
    if isinstance(given, dict):
        if part not in given:
            raise DataError(f"{path}: expected the part {part!r}; it has {', '.join(map(str, given)) or 'none'}")
        given, where = given[part], f"{path}, {part}"
    if not isinstance(given, list):
        raise DataError(f"{where}: expected a list of pieces; got {_short(given)}")
    for number, piece in enumerate(given, 1):
        if not isinstance(piece, list):
            raise DataError(f"{where}, piece {number}: expected a list of steps; got {_short(piece)}")
        yield [_listed(step, f"{where}, piece {number}, step {at}") for at, step in enumerate(piece, 1)]


def _listed(step: Any, where: str) -> Chord:
    keys: Sequence[Any] = step if isinstance(step, list) else [None]
    if not all(type(key) in (int, float) and key == int(min(max(key, -1), HIGHEST)) for key in keys):
        raise DataError(f"{where}: expected a list of keys 0 to {HIGHEST}, or -1 for a pause; got {_short(step)}")
    return tuple(sorted({int(key) for key in keys if key >= 0}))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"

"""MIDI files: which keys sound at each step of a regular grid."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from everstep.data.text.text_files import read_start
from everstep.errors import DataError

_DRUMS = 9
_STEPS = 1_000_000
_LARGEST = 4 << 20
_TICKS = 480
_VELOCITY = 80
_BEGINS, _TRACK = b"MThd", b"MTrk"
_SUFFIXES = (".mid", ".midi", ".kar")
_OFF, _ON, _META = 0x80, 0x90, 0xFF
_TOLD = (0xF0, 0xF7, _META)
"""Events that tell how long they are."""
_SIZES = {_OFF: 2, _ON: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2, 0xF1: 1, 0xF2: 2, 0xF3: 1}
"""Bytes of data of others, by what they are; of the rest none."""
Note = tuple[int, int, int | None]
"""Key, begin, end, in ticks; None: nothing ends it."""


def is_midi(path: Path) -> bool:
    """Whether a file is MIDI by its name, with or without .gz or .xz behind, or by how it begins."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    return name.endswith(_SUFFIXES) or read_start(path, len(_BEGINS)) == _BEGINS


def midi_piece(path: Path, steps_per_beat: int = 1) -> list[tuple[int, ...]]:
    """The keys that sound at each step of a MIDI file, as rising numbers; silence before and behind is left out.

    A note sounds from the step nearest to its begin up to the one nearest to its end, the earlier one of two that are
    as near, at least for one. It ends with its note-off, else where its key is struck again in its track and channel,
    else with the piece. Channel 10, which holds drums, is left out. All tracks are one piece. What is neither the begin
    nor the end of a note is passed over, so that what it says cannot be wrong.

    Args:
        path: the file.
        steps_per_beat: steps of a quarter note.

    Raises:
        DataError: it is no MIDI file, larger than 4 MiB, of type 2, without beats, or has more than a million steps.
    """
    content = read_start(path, _LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{path}: expected a MIDI file of at most {_LARGEST:,} bytes; it has more")
    try:
        kind, beat, tracks = _parts(content)
        found = [_notes(track) for track in tracks]
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: is no MIDI file that can be read ({error})") from None
    if not 0 < beat < 1 << 15:
        raise DataError(f"{path}: expected 1 to 32,767 ticks a beat; got {beat}, which "
                        f"{'are frames of a film (SMPTE)' if beat else 'tells no time'}")  # fmt: skip
    if kind == 2:
        raise DataError(f"{path}: expected tracks that sound together; got type 2, songs of their own: save each "
                        "as a file")  # fmt: skip
    ended = max((ticks for _, ticks in found), default=0)
    notes = [(key, start, ended if stop is None else stop) for notes, _ in found for key, start, stop in notes]
    spans = [(key, *(-((beat - 2 * at * steps_per_beat) // (2 * beat)) for at in times)) for key, *times in notes]
    if not spans:
        return []
    first, last = min(start for _, start, _ in spans), max(max(stop, start + 1) for _, start, stop in spans)
    if last - first > _STEPS:
        raise DataError(f"{path}: expected at most {_STEPS:,} steps; it has {last - first:,}")
    steps: list[set[int]] = [set() for _ in range(last - first)]
    for key, start, stop in spans:
        for step in range(start, max(stop, start + 1)):
            steps[step - first].add(key)
    return [tuple(sorted(keys)) for keys in steps]


def _parts(content: bytes) -> tuple[int, int, list[bytes]]:
    """Type, ticks a beat (negative for frames) and tracks of a file; chunks of other kinds are passed over."""
    if not content.startswith(_BEGINS):
        raise ValueError("it does not begin with MThd")
    file = io.BytesIO(content)
    head = _chunk(file)[1]
    kind, count, beat = struct.unpack(">HHh", _taken(io.BytesIO(head), 6))
    tracks: list[bytes] = []
    while len(tracks) < count:
        name, body = _chunk(file)
        tracks += [body] if name == _TRACK else []
    return kind, beat, tracks


def _chunk(file: io.BytesIO) -> tuple[bytes, bytes]:
    name, size = _taken(file, 4), int.from_bytes(_taken(file, 4))
    return name, _taken(file, size)


def _taken(file: io.BytesIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise EOFError("it ends too early")
    return found


def _number(file: io.BytesIO) -> int:
    """A number of up to four bytes, of seven bits each; the last one has no mark."""
    value = 0
    for _ in range(4):
        byte = _taken(file, 1)[0]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value
    raise ValueError("a number has more than four bytes")


def _events(track: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The events of a track: when, in ticks, what, and its data."""
    file, now, running = io.BytesIO(track), 0, 0
    while file.tell() < len(track):
        now += _number(file)
        what, data = _taken(file, 1)[0], b""
        if what < 0x80:  # another one of the kind before
            what, data = running, bytes((what,))
        if not what:
            raise ValueError("an event does not say what it is")
        if what in _TOLD:
            _taken(file, what == _META)
            data = _taken(file, _number(file))
        else:
            data += _taken(file, _SIZES.get(what & 0xF0 if what < 0xF0 else what, 0) - len(data))
            running = what if what < 0xF0 else running
        yield now, what, data


def _notes(track: bytes) -> tuple[list[Note], int]:
    """The notes of a track, and when it ends, in ticks."""
    begun: dict[tuple[int, int], int] = {}
    again: dict[tuple[int, int], int] = {}
    found: list[Note] = []
    now = 0
    for now, what, data in _events(track):
        kind, channel = what & 0xF0, what & 0x0F
        if kind not in (_OFF, _ON) or channel == _DRUMS:
            continue
        key = min(data[0], 127)
        name = channel, key
        if kind == _ON and data[1] > 0:
            if name in begun:
                found.append((key, begun[name], now))
                again[name] = now
            begun[name] = now
        elif name in begun and again.pop(name, None) != now:  # else it is the end of the note before
            found.append((key, begun.pop(name), now))
    return found + [(key, start, None) for (_, key), start in begun.items()], now


def midi_bytes(piece: Sequence[Sequence[int]], steps_per_beat: int = 1, beats_per_minute: int = 90) -> bytes:
    """A piece as a MIDI file of one track; a key that sounds in steps in a row is one note.

    Args:
        piece: the keys that sound at each step.
        steps_per_beat: steps of a quarter note.
        beats_per_minute: quarter notes a minute.
    """
    events = [(0, bytes((_META, 0x51, 3)) + round(60_000_000 / beats_per_minute).to_bytes(3))]
    sounding: set[int] = set()
    for step, keys in enumerate([*map(set, piece), set[int]()]):
        at = round(step * _TICKS / steps_per_beat)
        events += [(at, bytes((_OFF, key, _VELOCITY))) for key in sorted(sounding - keys)]
        events += [(at, bytes((_ON, key, _VELOCITY))) for key in sorted(keys - sounding)]
        sounding = keys
    events.append((events[-1][0], bytes((_META, 0x2F, 0))))
    times = [0, *(at for at, _ in events)]
    track = b"".join(_written(at - times[place]) + event for place, (at, event) in enumerate(events))
    head = struct.pack(">HHH", 1, 1, _TICKS)
    return b"".join(name + len(body).to_bytes(4) + body for name, body in ((_BEGINS, head), (_TRACK, track)))


def _written(number: int) -> bytes:
    """A number as `_number` reads it."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))

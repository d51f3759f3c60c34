"""MIDI files: which keys sound at each step of a regular grid. Needs mido."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from everstep.data.text.text_files import read_start
from everstep.errors import ConfigError, DataError

_DRUMS = 9
_STEPS = 1_000_000
_LARGEST = 4 << 20
_TICKS = 480
_VELOCITY = 80
_BEGINS = b"MThd"
_SUFFIXES = (".mid", ".midi", ".kar")
REMEDY = "MIDI files need mido: pip install 'everstep[music]'"


def is_midi(path: Path) -> bool:
    """Whether a file is MIDI by its name, with or without .gz or .xz behind, or by how it begins."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    return name.endswith(_SUFFIXES) or read_start(path, len(_BEGINS)) == _BEGINS


def midi_piece(path: Path, steps_per_beat: int = 1) -> list[tuple[int, ...]]:
    """The keys that sound at each step of a MIDI file, as rising numbers; silence before and behind is left out.

    A note sounds from the step nearest to its begin up to the one nearest to its end, the earlier one of two that are
    as near, at least for one. Channel 10, which holds drums, is left out. All tracks are one piece.

    Args:
        path: the file.
        steps_per_beat: steps of a quarter note.

    Raises:
        DataError: it is no MIDI file, larger than 4 MiB, of type 2, without beats, or has more than a million steps.
        ConfigError: mido is missing.
    """
    mido, content = _mido(), read_start(path, _LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{path}: expected a MIDI file of at most {_LARGEST:,} bytes; it has more")
    try:
        file = mido.MidiFile(file=io.BytesIO(content), clip=True)
        notes = list(_notes(mido.merge_tracks(file.tracks)))
    except Exception as error:  # a damaged file makes mido raise anything, such as KeySignatureError
        what = "it ends too early" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise DataError(f"{path}: is no MIDI file that can be read ({what})") from None
    beat = int(file.ticks_per_beat)
    if not 0 < beat < 1 << 15:
        raise DataError(f"{path}: expected 1 to 32,767 ticks a beat; got {beat}, which "
                        f"{'are frames of a film (SMPTE)' if beat else 'tells no time'}")  # fmt: skip
    if file.type == 2:
        raise DataError(f"{path}: expected tracks that sound together; got type 2, songs of their own: save each "
                        "as a file")  # fmt: skip
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


def _notes(messages: Any) -> Iterator[tuple[int, int, int]]:
    """The notes, (key, begin, end) each, in ticks; one that never ends ends with the piece."""
    now, begun = 0, dict[tuple[int, int], list[int]]()
    for message in messages:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
            continue
        name = (message.channel, message.note)
        if message.type == "note_on" and message.velocity > 0:
            begun.setdefault(name, []).append(now)
        elif begun.get(name):
            yield message.note, begun[name].pop(0), now
    yield from ((key, start, now) for (_, key), starts in begun.items() for start in starts)


def midi_bytes(piece: Sequence[Sequence[int]], steps_per_beat: int = 1, beats_per_minute: int = 90) -> bytes:
    """A piece as a MIDI file of one track; a key that sounds in steps in a row is one note.

    Args:
        piece: the keys that sound at each step.
        steps_per_beat: steps of a quarter note.
        beats_per_minute: quarter notes a minute.

    Raises:
        ConfigError: mido is missing.
    """
    mido = _mido()
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute), time=0)])
    sounding: set[int] = set()
    before = 0
    for step, keys in enumerate([*map(set, piece), set[int]()]):
        at = round(step * _TICKS / steps_per_beat)
        changes = [("note_off", key) for key in sorted(sounding - keys)]
        changes += [("note_on", key) for key in sorted(keys - sounding)]
        for kind, key in changes:
            track.append(mido.Message(kind, note=key, velocity=_VELOCITY, time=at - before))
            before = at
        sounding = keys
    written = io.BytesIO()
    mido.MidiFile(tracks=[track], ticks_per_beat=_TICKS).save(file=written)
    return written.getvalue()


def _mido() -> Any:
    try:
        import mido
    except ImportError:
        raise ConfigError(REMEDY) from None
    return mido

"""MIDI files: which keys sound at each step of a regular grid. Needs mido."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from everstep.errors import ConfigError, DataError
from everstep.storage.reading import read_small

_DRUMS = 9
_STEPS = 1_000_000
_LARGEST = 64 << 20
_TICKS = 480
_VELOCITY = 80
REMEDY = "MIDI files need mido: pip install 'everstep[music]'"


def midi_piece(path: Path, steps_per_beat: int = 1) -> list[tuple[int, ...]]:
    """The keys that sound at each step of a MIDI file, as rising numbers; silence before and behind is left out.

    A note sounds from the step nearest to its begin up to the one nearest to its end, at least for one. Channel 10,
    which holds drums, is left out. All tracks are one piece.

    Args:
        path: the file.
        steps_per_beat: steps of a quarter note.

    Raises:
        DataError: it is no MIDI file, has no beats, or more than a million steps.
        ConfigError: mido is missing.
    """
    mido = _mido()
    try:
        content = read_small(path, _LARGEST)
        file = mido.MidiFile(file=io.BytesIO(content), clip=True)
        beat = int(file.ticks_per_beat)
        notes = list(_notes(mido.merge_tracks(file.tracks)))
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no MIDI file that can be read ({error or type(error).__name__})") from None
    if not 0 < beat < 1 << 15:
        raise DataError(f"{path}: expected times in parts of a beat; it has frames of a film (SMPTE)")
    spans = [(key, round(on * steps_per_beat / beat), round(off * steps_per_beat / beat)) for key, on, off in notes]
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

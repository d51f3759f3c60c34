"""MIDI files: what sounds when, what is passed over, what is refused, and what is written."""

from __future__ import annotations

import io
from pathlib import Path

import mido
import numpy as np
import pytest

from everstep.data.readers.chords import chords_text
from everstep.data.readers.midi import midi_bytes, midi_piece
from everstep.errors import DataError


def test_a_midi_file_as_people_play(tmp_path: Path) -> None:
    late = [("note_on", 60, 25), ("note_on", 64, 5), ("note_off", 60, 90), ("note_on", 64, 110)]  # velocity 0 ends it
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=400000, time=0)])
    for kind, key, time in late:
        track.append(mido.Message(kind, note=key, velocity=0 if time == 110 else 64, time=time))
    drums = mido.MidiTrack([mido.Message("note_on", note=35, channel=9, time=500)])
    held = mido.MidiTrack([mido.Message("note_on", note=72, channel=3, time=240)])  # never ends
    mido.MidiFile(tracks=[track, drums, held], ticks_per_beat=120).save(tmp_path / "x.mid")
    assert midi_piece(tmp_path / "x.mid", 1) == [(60, 64), (64,), (72,), (72,)]
    mido.MidiFile(tracks=[drums]).save(tmp_path / "drums.mid")
    assert midi_piece(tmp_path / "drums.mid") == []
    written = mido.MidiFile(file=io.BytesIO(midi_bytes([(60,), (60, 62), (62,)])))
    notes = [message for message in written.tracks[0] if message.type.startswith("note")]
    assert [(one.type, one.note, one.time) for one in notes] == [
        ("note_on", 60, 0),
        ("note_on", 62, 480),
        ("note_off", 60, 480),
        ("note_off", 62, 480),
    ]


def midi_file(path: Path, *tracks: bytes, beat: int = 4) -> Path:
    """A file of tracks as they are."""
    head = b"MThd\0\0\0\6\0\1" + len(tracks).to_bytes(2) + beat.to_bytes(2)
    path.write_bytes(head + b"".join(b"MTrk" + len(track).to_bytes(4) + track for track in tracks))
    return path


@pytest.mark.parametrize(
    "event",
    [
        b"\xff\x59\2\x30\1",  # 48 sharps
        b"\xff\x51\1\7",  # a tempo of one byte
        b"\xff\x58\0",
        b"\xff\x54\5\xff\0\0\0\0",
        b"\xff\x6a\3abc",  # nobody knows this one
        b"\xf0\3\1\2\xf7",
        b"\xf7\0",
        b"\xf8",
        b"\xc3\5",
    ],
)
def test_what_is_no_note_in_a_midi_file_is_passed_over_but_its_time(event: bytes, tmp_path: Path) -> None:
    notes = b"\0\x90\x3c\x40\4\x3c\0\4" + event + b"\0\x90\x40\x40\4\x80\x40\0"
    assert midi_piece(midi_file(tmp_path / "x.mid", notes)) == [(60,), (), (64,)]


def test_each_end_of_a_note_in_a_midi_file_is_its_own(tmp_path: Path) -> None:
    def piece(*events: tuple[int, int, int]) -> str:  # ticks later, channel, and key, below 0 for an end
        track = b"".join(
            bytes((later, (0x90 if key > 0 else 0x80) + channel, abs(key), 64)) for later, channel, key in events
        )
        return chords_text(midi_piece(midi_file(tmp_path / "x.mid", track)))

    assert (
        piece((0, 0, 60), (4, 0, 60), (4, 0, -60), (4, 0, 60), (4, 0, -60)) == "60 60 - 60"
    )  # the first end is missing
    assert piece((0, 0, 60), (4, 0, 60), (0, 0, -60), (8, 0, -60)) == "60 60 60"  # an end behind the next begin
    assert piece((0, 0, 60), (4, 0, 60), (8, 0, -60), (8, 0, -60)) == "60 60 60"  # two voices, and one end too many
    assert piece((0, 0, 60), (4, 1, 60), (4, 0, -60), (8, 1, -60)) == "60 60 60 60"
    first, second = b"\0\x90\x3c\x40\x0c\x80\x3c\0", b"\4\x90\x3c\x40\4\x80\x3c\0"  # one channel, two tracks
    assert chords_text(midi_piece(midi_file(tmp_path / "x.mid", first, second))) == "60 60 60"
    aside = midi_file(tmp_path / "x.mid", first).read_bytes().replace(b"MTrk", b"XFIH\0\0\0\2abMTrk")
    (tmp_path / "x.mid").write_bytes(aside)
    assert chords_text(midi_piece(tmp_path / "x.mid")) == "60 60 60"


@pytest.mark.parametrize("seed", range(5))
def test_midi_files_are_read_and_written_as_mido_does(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    rolls = random.random((400, 12)) < 0.3
    piece = [tuple((np.flatnonzero(keys) + 55).tolist()) for keys in rolls]
    piece = [(), *piece, (60,), *[()] * 300, (60, 61)]
    read = mido.MidiFile(file=io.BytesIO(midi_bytes(piece, 2, 100)))
    assert (read.ticks_per_beat, [one.tempo for one in read.tracks[0] if one.type == "set_tempo"]) == (480, [600_000])
    again = mido.MidiFile(ticks_per_beat=read.ticks_per_beat)
    again.tracks.append(mido.MidiTrack(one for one in read.tracks[0] if one.type != "set_tempo"))
    again.save(tmp_path / "x.mid")  # with running status
    assert midi_piece(tmp_path / "x.mid", 2) == piece[1:]


def test_times_between_two_steps_go_to_the_earlier_one(tmp_path: Path) -> None:
    track = mido.MidiTrack()
    for key in range(60, 66):
        track += [mido.Message("note_on", note=key), mido.Message("note_off", note=key, time=30)]
    mido.MidiFile(tracks=[track], ticks_per_beat=120).save(tmp_path / "sixteenths.mid")
    assert midi_piece(tmp_path / "sixteenths.mid", 2) == [(60, 61), (62, 63), (64, 65)]


def test_a_midi_file_that_lasts_for_years_is_refused(tmp_path: Path) -> None:
    notes = [mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=0x0FFFFFFF)]
    mido.MidiFile(tracks=[mido.MidiTrack(notes)], ticks_per_beat=1).save(tmp_path / "x.mid")
    with pytest.raises(DataError, match="expected at most 1,000,000 steps; it has 268,435,455"):
        midi_piece(tmp_path / "x.mid")

"""Piano rolls: which keys sound when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from everstep.look.style import COLOURS, GREY, canvas, label, save, whole

Roll = NDArray[np.bool_]
NAMES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")


def key_name(key: int) -> str:
    """The name of a MIDI number.

    >>> key_name(60), key_name(58)
    ('C4', 'B♭3')
    """
    return f"{NAMES[key % 12]}{key // 12 - 1}"


def draw_surprise(roll: Roll, lowest: int, bits: Sequence[float], path: Path) -> str:
    """Draw a piece (steps, K) and how much each chord surprised the model; returns what to see.

    Args:
        roll: whether a key sounds.
        lowest: the MIDI number of the first key.
        bits: −log₂ p of each chord.
        path: the PNG to write.
    """
    figure = canvas(6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw(above, roll, lowest, 0, COLOURS[0])
    above.set_xlabel("")
    below.bar(np.arange(len(bits)) + 0.5, bits, width=0.9, color=COLOURS[1])
    label(below, "step", "bits")
    whole(below)
    save(figure, path)
    return f"A piece, and how much each chord surprised the model, {np.mean(bits):.1f} bits on average."


def draw_continued(given: Roll, came: Roll, made: Roll, lowest: int, path: Path) -> str:
    """Draw how a piece went on, and how the model continued it; returns what to see.

    Args:
        given: (steps, K), what the model has read.
        came: (steps, K), how the piece went on.
        made: (steps, K), what the model sampled.
        lowest: the MIDI number of the first key.
        path: the PNG to write.
    """
    figure = canvas(7.0)
    edges = np.flatnonzero(np.concatenate([given, came, made]).any(0))
    drawn = (("the piece", came), ("this run", made))
    for axes, (name, rest) in zip(figure.subplots(2, 1, sharex=True), drawn, strict=True):
        _draw(axes, given, lowest, 0, GREY)
        _draw(axes, rest, lowest, len(given), COLOURS[0])
        axes.axvline(len(given), color="black", linewidth=1)
        axes.set_ylim(lowest + edges[0] - 1, lowest + edges[-1] + 2)
        axes.set_title(name, fontsize=14, loc="left")
    figure.axes[0].set_xlabel("")
    save(figure, path)
    return "Grey: read; blue: how the piece went on (above), and how the model continued it, sampled (below)."


def _draw(axes: Axes, roll: Roll, lowest: int, start: int, colour: str) -> None:
    """Draw the keys from step `start` on; what sounds in steps in a row is one bar."""
    edge = np.zeros_like(roll[:1])
    changes = np.diff(np.concatenate([edge, roll, edge]).astype(np.int8), axis=0)
    for key in range(roll.shape[1]):
        begins, ends = (np.flatnonzero(changes[:, key] == change) for change in (1, -1))
        axes.broken_barh(list(zip(start + begins, ends - begins, strict=True)), (lowest + key - 0.4, 0.8), color=colour)
    label(axes, "step", "key")
    axes.set_axisbelow(True)
    octaves = range(0, 128, 12)
    axes.set_yticks(octaves, [key_name(key) for key in octaves])
    sounding = np.flatnonzero(roll.any(0))
    if len(sounding):
        axes.set_ylim(lowest + sounding[0] - 1, lowest + sounding[-1] + 2)
    whole(axes)

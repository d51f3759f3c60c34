"""Make up the music that comes with everstep: rounds for three voices, `everstep:rounds.train` and `.test`.

The first voice walks about a major scale; the second sings the same four steps later and the third eight, each an
octave lower. So whoever remembers eight steps knows two of three voices, which one chord does not tell.

    python benchmarks/make_rounds.py everstep/data/bundled
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np

from everstep.data.readers.chords import Chord, chords_text

SIZES = {"train": 500, "test": 40}
MELODY = 24
"""Steps that a voice sings."""
BEHIND = 4
VOICES = 3
SCALE = (0, 2, 4, 5, 7, 9, 11)


def melody(random: np.random.Generator) -> list[int]:
    """A walk on the degrees of a scale, from its first degree and back; a note may be held."""
    degree, found = 0, []
    for step in range(MELODY):
        if (step and step % 2 == 0) or random.random() < 0.7:
            degree = int(np.clip(degree + random.integers(-2, 3), -3, 7))
        found.append(degree)
    return [*found[:-1], 0]


def round_of(random: np.random.Generator) -> list[Chord]:
    """A round in a key of its own."""
    tonic, sung = 67 + int(random.integers(-5, 6)), melody(random)
    steps: list[set[int]] = [set() for _ in range(MELODY + BEHIND * (VOICES - 1))]
    for voice in range(VOICES):
        for step, degree in enumerate(sung, voice * BEHIND):
            octave, place = divmod(degree, len(SCALE))
            steps[step].add(tonic + 12 * (octave - voice) + SCALE[place])
    return [tuple(sorted(keys)) for keys in steps]


if __name__ == "__main__":
    for seed, name in enumerate(SIZES):
        drawn = np.random.default_rng(seed)
        lines = [chords_text(round_of(drawn)) for _ in range(SIZES[name])]
        path = Path(sys.argv[1], f"rounds.{name}.txt.xz")
        path.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode(), preset=9))

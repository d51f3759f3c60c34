"""Take the drawings that come with everstep, `everstep:omniglot.train` and `.test`, out of Omniglot's.

Omniglot (Lake 2015, github.com/brendenlake/omniglot, MIT licence) as strokes of Ha's sketch-rnn-datasets, re-packed
without pickled objects (the arrays that `everstep.data.readers.drawings` reads). `python benchmarks/make_omniglot.py
omniglot.npz FOLDER`
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np

from everstep.data.readers.drawings import drawing_text, read_drawings

SIZES = {"train": 1600, "test": 200}

if __name__ == "__main__":
    for name, size in SIZES.items():
        every = list(read_drawings(Path(sys.argv[1]), name))
        chosen = np.sort(np.random.default_rng(1).permutation(len(every))[:size])
        text = "".join(f"{drawing_text(every[place])}\n" for place in chosen)
        path = Path(sys.argv[2], f"omniglot.{name}.jsonl.xz")
        path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))

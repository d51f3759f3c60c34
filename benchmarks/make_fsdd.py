"""Manifests of the Free Spoken Digit Dataset, and strings of digits joined from it.

    python benchmarks/make_fsdd.py recordings.tar.xz FOLDER

The archive holds `{digit}_{speaker}_{index}.wav` (github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0). The
official test split is the indices 0 to 4; 5 to 9 are held out for validation, and the others are for training.
FOLDER gets the recordings, `digits.SPLIT.tsv`, and `strings.SPLIT.tsv`: one to seven recordings of one speaker and one
split, drawn at random and joined without a pause. `texts.train.txt` has the texts of training, for a language model.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np

from everstep.data.readers.audio import read_recording, wav_bytes

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STRINGS = {"train": 1500, "valid": 150, "test": 150}
LONGEST = 7


def split_of(index: int) -> str:
    """The split of a recording by its index."""
    return "test" if index < 5 else "valid" if index < 10 else "train"


def unpacked(archive: Path, folder: Path) -> list[Path]:
    """The recordings of an archive, written into `folder`, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with tarfile.open(archive) as packed:
        for member in packed:
            content = packed.extractfile(member) if member.name.endswith(".wav") else None
            if content is not None:
                found.append(folder / Path(member.name).name)
                found[-1].write_bytes(content.read())
    return sorted(found)


def write(folder: Path, name: str, rows: list[tuple[str, str]]) -> None:
    """A manifest."""
    (folder / name).write_text("".join(f"{audio}\t{text}\n" for audio, text in [("audio", "text"), *rows]))


def make(archive: Path, folder: Path) -> None:
    """Write all files."""
    groups: dict[str, dict[str, list[Path]]] = {split: {} for split in STRINGS}
    for path in unpacked(archive, folder / "recordings"):
        _, speaker, index = path.stem.split("_")
        groups[split_of(int(index))].setdefault(speaker, []).append(path)
    (folder / "strings").mkdir(exist_ok=True)
    for seed, (split, speakers) in enumerate(groups.items()):
        paths = [path for one in speakers.values() for path in one]
        spelled = {path: NAMES[int(path.name[0])] for path in paths}
        write(folder, f"digits.{split}.tsv", [(f"recordings/{path.name}", spelled[path]) for path in paths])
        random, rows = np.random.default_rng(seed), list[tuple[str, str]]()
        for number in range(STRINGS[split] if speakers else 0):
            own = speakers[sorted(speakers)[random.integers(len(speakers))]]
            drawn = [own[place] for place in random.integers(len(own), size=random.integers(1, LONGEST + 1))]
            parts = [read_recording(path) for path in drawn]
            name = f"strings/{split}-{number:04}.wav"
            joined = np.concatenate([part.mono(parts[0].rate) for part in parts])
            (folder / name).write_bytes(wav_bytes(joined, parts[0].rate))
            rows.append((name, " ".join(spelled[path] for path in drawn)))
        write(folder, f"strings.{split}.tsv", rows)
        if split == "train":
            said = [*spelled.values(), *(text for _, text in rows)]
            (folder / "texts.train.txt").write_text("".join(f"{text}\n" for text in said))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))

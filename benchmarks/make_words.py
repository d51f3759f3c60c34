"""Writes a text of 2.7 million words that is larger than Penn Treebank's: Brown and film reviews, in lower case.

    python benchmarks/make_words.py FOLDER

`train.txt`, `valid.txt`, `test.txt`: a sentence a line, tokens between spaces. Of the documents of each source, sorted
by name, every tenth is for testing and the one after it for validation. `EVERSTEP_DATA` names the folder of both.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

DATA = Path(os.environ.get("EVERSTEP_DATA", "shared/data"))
SPLIT = {0: "test", 1: "valid"}


def documents(archive: str, pattern: str) -> Iterator[list[str]]:
    """The lines of each document whose name matches."""
    with zipfile.ZipFile(DATA / archive) as packed:
        for name in sorted(packed.namelist()):
            if re.fullmatch(pattern, name):
                yield packed.read(name).decode("latin-1").lower().split("\n")


def main() -> None:
    """Write three files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    brown = documents("brown/brown.zip", r"brown/c[a-r]\d\d")
    untagged = ([" ".join(one.rpartition("/")[0] for one in line.split()) for line in lines] for lines in brown)
    for source in (untagged, documents("movie_reviews/movie_reviews.zip", r"movie_reviews/(neg|pos)/cv\d+_\d+\.txt")):
        for number, lines in enumerate(source):
            found[SPLIT.get(number % 10, "train")] += [" ".join(line.split()) for line in lines if line.strip()]
    for split, lines in found.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{split}: {len(lines):,} lines, {sum(len(line.split()) for line in lines):,} words")


if __name__ == "__main__":
    main()

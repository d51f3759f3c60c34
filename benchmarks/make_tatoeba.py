"""Writes the bundled sentences of Tatoeba: short English sentences, each with one French translation.

    python make_tatoeba.py FRA_TXT [FOLDER]      without FOLDER, into the package

FRA_TXT, plain or `.gz`, is `fra.txt` of the archive fra-eng.zip of www.manythings.org/anki (English, a tab, French), of
2017-09-29 for the files that are shipped. The sentences are from tatoeba.org under CC BY 2.0 FR; the notice beside the
written files says so. Kept are sentences of 3 to 8 words, all of them frequent; of an English sentence the translation
whose words are the most frequent. No English sentence is in two of the parts.
"""

from __future__ import annotations

import lzma
import math
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random

from everstep.data.text.text_files import file_lines

TEXTS = Path(__file__).parent.parent / "everstep" / "data" / "bundled"
SIZES = {"valid": 500, "test": 500, "train": 14_000}
LENGTHS = range(3, 9)
FREQUENT = 2500
"""Words of each language of which sentences are made."""
NOTICE = """tatoeba.*.tsv.xz: sentences from the Tatoeba project (tatoeba.org), by its contributors, as paired in the
file fra-eng.zip (2017-09-29) of www.manythings.org/anki.
Licence: CC BY 2.0 FR, https://creativecommons.org/licenses/by/2.0/fr/
Changes: a selection of short sentences, one translation each, narrow no-break spaces as spaces, a header line.
"""
_WORD = re.compile(r"[^\W\d_]+")


def words(text: str) -> list[str]:
    """The words of a sentence in lower case."""
    return _WORD.findall(text.lower())


def main(source: Path, folder: Path) -> None:
    """Write all files."""
    rows = [
        line.rstrip("\n").replace("\u202f", " ").replace("\xa0", " ").split("\t")[:2] for line in file_lines(source)
    ]
    rows = [(english.strip(), " ".join(french.split())) for english, french in rows]
    counts = [Counter(word for row in rows for word in words(row[side])) for side in (0, 1)]
    known = [dict(count.most_common(FREQUENT)) for count in counts]
    best: dict[str, tuple[float, str]] = {}
    for english, french in rows:
        both = words(english), words(french)
        if len(both[0]) not in LENGTHS or any(word not in known[s] for s in (0, 1) for word in both[s]):
            continue
        rarity = -sum(math.log(known[1][word]) for word in both[1]) / max(len(both[1]), 1)
        best[english] = min(best.get(english, (math.inf, "")), (rarity, french))
    sentences = sorted(best)
    Random(1).shuffle(sentences)
    start = 0
    for split, size in SIZES.items():
        part = sentences[start : start + size]
        start += size
        lines = ["en\tfr\n", *(f"{english}\t{best[english][1]}\n" for english in part)]
        path = folder / f"tatoeba.{split}.tsv.xz"
        path.write_bytes(lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
        print(path, len(part), path.stat().st_size)
    (folder / "NOTICE-tatoeba.txt").write_text(NOTICE)
    print(len(sentences), "to choose from")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else TEXTS)

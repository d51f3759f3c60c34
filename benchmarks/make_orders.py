"""Writes the bundled orders: short made-up messages with people, places, goods and days, each word with a tag.

    python make_orders.py [FOLDER]      without FOLDER, into the package

Most names are people's in one message and places' in another ("Florence Miller ordered …", "… by train to Florence"):
only what stands around them tells. Half of the names of `valid` and `test` occur in no text of `train`. Tags are IOB2,
two columns separated by a tab, a blank line after each message.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path
from random import Random

TEXTS = Path(__file__).parent.parent / "everstep" / "data" / "bundled"
SIZES = {"train": 1500, "valid": 250, "test": 250}

BOTH = """Florence Sydney Austin Jackson Victoria Chelsea Charlotte Georgia Madison Lincoln Savannah Kingston Preston
Carson Paris Regina Adelaide Alexandria Bradford Camden Clifton Dallas Denver Devon Houston Lancaster Milan Orlando
Raleigh Salem Stafford Trenton Vienna Wellington Winston""".split()  # noqa: SIM905
FIRST = """Anna Ben Clara David Eva Frank Greta Hugo Ida Jan Karin Leo Mona Nils Olga Peter Rosa Sven Tina Ulf Vera
Walter Yvonne Zoe""".split()  # noqa: SIM905
LAST = """Miller Berg Novak Rossi Tanaka Okafor Silva Larsen Moreau Schmidt Kowalski Petrov Haddad Nguyen Fischer Dubois
Jansen Costa Weber Hansen Romano Yilmaz""".split()  # noqa: SIM905
GOODS = """apples|chairs|olive oil|copper wire|green tea|garden hoses|paper|winter tyres|coffee beans|door handles|
honey|blue paint|light bulbs|rice|roof tiles|sun flower seeds|wool|work gloves|zinc screws|rubber boots""".replace(
    "\n", ""
)
UNITS = "boxes|bags|crates|litres|pallets|rolls|tons|pieces"
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|next week|tomorrow|3 March|14 May|the first of June|27 October"
SHAPES = [
    "P ordered A of G for D .",
    "Please send A of G to P in L by D .",
    "P of L wants A of G .",
    "The G for P must be in L on D .",
    "D P will fetch the G in L .",
    "A of G went from L to L on D .",
    "Is P still waiting for the G from L ?",
    "L needs G , says P .",
    "P called : no G before D , please .",
    "From L , A of G , paid by P .",
    "Cancel the order of P : A of G .",
    "P and P share A of G , half of it goes to L .",
    "Nothing came to L on D .",
    "The lorry from L is late , tell P .",
    "Thank you , and see you on D .",
]
KINDS = {"P": "PERSON", "L": "PLACE", "A": "AMOUNT", "G": "GOODS", "D": "DAY"}


def main(folder: Path) -> None:
    """Write all files."""
    random = Random(1)
    known = {name: random.sample(names, len(names) // 2) for name, names in (("b", BOTH), ("f", FIRST), ("l", LAST))}
    for split, size in SIZES.items():
        names = (BOTH, FIRST, LAST) if split != "train" else tuple(known.values())
        lines: list[str] = []
        for _ in range(size):
            lines += [f"{word}\t{tag}" for word, tag in message(random, *names)] + [""]
        content = ("\n".join(lines) + "\n").encode()
        (folder / f"orders.{split}.conll.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def message(random: Random, both: list[str], first: list[str], last: list[str]) -> list[tuple[str, str]]:
    """One message: words with tags."""

    def filled(slot: str) -> list[str]:
        if slot == "P":
            given = random.choice(both if random.random() < 0.5 else first)
            family = random.choice(both if random.random() < 0.3 else last)
            return [given] if random.random() < 0.3 else [given, family]
        if slot == "L":
            return ["New", random.choice(both)] if random.random() < 0.1 else [random.choice(both)]
        if slot == "A":
            return [str(random.choice([2, 3, 5, 8, 10, 12, 20, 40, 75, 100, 250])), random.choice(UNITS.split("|"))]
        return random.choice((GOODS if slot == "G" else DAYS).split("|")).split()

    found: list[tuple[str, str]] = []
    for place, part in enumerate(random.choice(SHAPES).split()):
        if part not in KINDS:
            found.append((part, "O"))
            continue
        words = filled(part)
        if place == 0:
            words[0] = words[0][0].upper() + words[0][1:]
        found += [(word, f"{'I' if number else 'B'}-{KINDS[part]}") for number, word in enumerate(words)]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TEXTS)

"""Writes the bundled reviews: short made-up opinions of two classes, in half of which only the order of words decides.

    python make_reviews.py [FOLDER]      without FOLDER, into the package

Half of the texts are *easy*: both opinions in them agree, and counting words is enough. The other half come in *pairs*
of the same words in another order and of opposite classes ("the food was good , not bad at all", "the food was bad ,
not good at all"), both in the same file, so that a bag of words has exactly one of the two right. Half of the pairs are
denied by what stands around them ("they wrote that … , and they were wrong"), so that sequences of a few words are at
chance, too. Two opinions that stand together in a text of `valid` or `test` never stand together in a text of `train`.
`reviews.pairs` holds pairs of one shape alone, that of the example, each the positive text and then its mirror image,
none of them in `train`.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import NamedTuple

TEXTS = Path(__file__).parent.parent / "everstep" / "data" / "bundled"
SIZES = {"train": 6000, "valid": 800, "test": 800}
PAIRS = 200
CLASSES = ("positive", "negative")

THINGS = """food soup bread cake salad wine coffee breakfast dinner dessert menu service waiter kitchen table room
bed bath view pool garden staff film plot story acting cast script ending music song singer band sound book style
language game trip tour guide weather""".split()  # noqa: SIM905
GOOD = """good great fine nice lovely wonderful excellent superb pleasant delightful brilliant charming perfect
splendid fantastic marvellous impressive enjoyable beautiful amazing admirable remarkable outstanding
satisfying""".split()  # noqa: SIM905
BAD = """bad awful poor nasty horrible terrible dreadful dismal unpleasant disappointing mediocre ghastly hopeless
lousy miserable unbearable regrettable pathetic ugly appalling shameful tedious dire annoying""".split()  # noqa: SIM905
HOW = ["", "", "really", "very", "quite", "truly", "rather", "so", "just", "simply"]
END = ["", "at all", "in the least", "by any means", "in any way", "one bit", "for a moment"]
BEGIN = [
    *[""] * 6,
    *("i must say", "to be honest ,", "as far as i can tell", "on our second visit", "last week", "as we all agreed ,"),
    *("after a long day", "for this price", "my sister thinks that", "in short ,", "believe me ,", "this time"),
]

# {a} decides; {b} is what it is not. Mirrored, the two change places and nothing else.
HARD = [
    "the {thing} was {how} {a} , not {b} {end}",
    "the {thing} was not {b} {end} but {how} {a}",
    "the {thing} was {how} {a} and never {b}",
    "the {thing} was never {b} {end} but {how} {a}",
    "the {thing} turned from {b} to {how} {a}",
    "the {thing} is {how} {a} now and used to be {b}",
    "the {thing} used to be {b} and is {how} {a} now",
    "the {thing} was far from {b} and in fact {how} {a}",
    "the {thing} was {how} {a} , which is far from {b}",
    "the {thing} , which many call {b} , was {how} {a}",
    "the {thing} was {how} {a} instead of {b}",
    "instead of {b} the {thing} was {how} {a}",
]
# What stands around such a clause affirms it or, as often, denies it.
AFFIRMED = [
    *["{begin} {clause}"] * 5,
    "{begin} i agree that {clause}",
    "{begin} it is true that {clause}",
    "{begin} nobody can deny that {clause}",
    "they wrote that {clause} , and they were right",
    "we were told that {clause} , which we found to be true",
]
DENIED = [
    "{begin} i can not agree that {clause}",
    "{begin} it is not true that {clause}",
    "{begin} only a fool could say that {clause}",
    "they wrote that {clause} , and they were wrong",
    "we were told that {clause} , which we found to be false",
]
EASY = [
    "{begin} the {thing} was {how} {a} and {b}",
    "{begin} the {thing} was {how} {a} , and the {other} was {b} too",
    "{begin} the {thing} was as {a} as the {other} was {b}",
    "{begin} we had the {how} {a} {thing} and some {b} {other}",
    "{a} {thing} , {b} {other}",
    "{how} {a} , {b} , that was the {thing}",
    "everyone calls the {thing} {a} , and i found it {how} {b}",
    "{begin} the {thing} used to be {a} and is {how} {b} now",
    "i expected the {thing} to be {a} , and {b} it was",
    "it would be right to call the {thing} {how} {a} and {b}",
]
ALIKE = "{begin} " + HARD[0]
EXAMPLE = ("good", "bad")  # of `reviews.pairs`, so never in `train`


class Text(NamedTuple):
    text: str
    label: str


def splits(seed: int = 1) -> dict[str, list[Text]]:
    """The texts of each file, the same for the same seed."""
    random = Random(seed)
    hard, easy = _divided(random, list(product(GOOD, BAD))), _divided(random, _agreeing())
    if EXAMPLE not in hard["test"]:
        for opinions in hard.values():
            if EXAMPLE in opinions:
                opinions.remove(EXAMPLE)
        hard["test"].append(EXAMPLE)
    found: dict[str, list[Text]] = {}
    for split, size in SIZES.items():
        texts = [text for pair in _pairs(random, hard[split], size // 4) for text in pair]
        texts += _easy(random, easy[split], size // 2)
        random.shuffle(texts)
        found[split] = texts
    example = _mirrored(ALIKE, {"begin": "", "thing": "food", "how": "", "end": "at all"}, EXAMPLE)
    alike = _different(lambda: _mirrored(ALIKE, _words(random), random.choice(hard["test"])), PAIRS)
    found["pairs"] = [text for pair in [example, *(pair for pair in alike if pair != example)][:PAIRS] for text in pair]
    return found


def _agreeing() -> list[tuple[str, str]]:
    return [*combinations(GOOD, 2), *combinations(BAD, 2)]


def _divided(random: Random, opinions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """What may stand together, a tenth of it for `valid` and a tenth for `test`."""
    random.shuffle(opinions)
    tenth = len(opinions) // 10
    return {"valid": opinions[:tenth], "test": opinions[tenth : 2 * tenth], "train": opinions[2 * tenth :]}


def _pairs(random: Random, opinions: list[tuple[str, str]], count: int) -> list[list[Text]]:
    """`count` different pairs, half of them affirmed and half denied."""

    def draw(denied: bool) -> list[Text]:
        frame = random.choice(DENIED if denied else AFFIRMED)
        shape = frame.replace("{clause}", random.choice(HARD))
        return _mirrored(shape, _words(random), random.choice(opinions), denied)

    return [pair for denied in (False, True) for pair in _different(partial(draw, denied), count // 2)]


def _different(draw: Callable[[], list[Text]], count: int) -> list[list[Text]]:
    """`count` draws, no two of which are equal."""
    found: dict[str, list[Text]] = {}
    while len(found) < count:
        pair = draw()
        found[pair[0].text] = pair
    return list(found.values())


def _mirrored(shape: str, words: dict[str, str], opinions: tuple[str, str], denied: bool = False) -> list[Text]:
    """A positive text and its mirror image, which is negative."""
    texts = [_filled(shape, words, *pair) for pair in (opinions, opinions[::-1])]
    return [Text(text, label) for text, label in zip(reversed(texts) if denied else texts, CLASSES, strict=True)]


def _easy(random: Random, opinions: list[tuple[str, str]], count: int) -> list[Text]:
    """`count` different texts, half of each class."""
    found: dict[str, dict[str, Text]] = {label: {} for label in CLASSES}
    while any(len(texts) < count // 2 for texts in found.values()):
        first, second = random.sample(random.choice(opinions), 2)
        label = CLASSES[first in BAD]
        text = _filled(random.choice(EASY), _words(random), first, second)
        if len(found[label]) < count // 2:
            found[label][text] = Text(text, label)
    return [text for texts in found.values() for text in texts.values()]


def _words(random: Random) -> dict[str, str]:
    thing, other = random.sample(THINGS, 2)
    drawn = {"begin": random.choice(BEGIN), "how": random.choice(HOW), "end": random.choice(END)}
    return {"thing": thing, "other": other, **drawn}


def _filled(shape: str, words: dict[str, str], a: str, b: str) -> str:
    return " ".join(shape.format(**words, a=a, b=b).split())


def content(texts: list[Text]) -> bytes:
    """The file of some texts: tab-separated, with a header."""
    return "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *texts]).encode()


def main(folder: Path) -> None:
    for name, texts in splits().items():
        path = folder / f"reviews.{name}.tsv.xz"
        path.write_bytes(lzma.compress(content(texts), preset=9))
        print(f"{path}: {len(texts)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TEXTS)

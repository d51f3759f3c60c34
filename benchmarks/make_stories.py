"""Make up the stories that come with everstep: `everstep:stories.train` and `.test`, in the form of bAbI.

People walk from room to room, and take things along. Where someone is follows from one sentence; where a thing is
follows from two, which may lie far apart.

    python benchmarks/make_stories.py everstep/data/bundled
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np

STORIES = {"train": 600, "test": 150}
SENTENCES = 12
PEOPLE = ("Ada", "Ben", "Chloe", "Dev")
ROOMS = ("kitchen", "garden", "attic", "cellar", "hall", "library")
THINGS = ("lamp", "ball", "key", "map")
WALKS = ("{} went to the {}.", "{} walked into the {}.", "{} is in the {} now.")
TAKES = ("{} took the {}.", "{} picked up the {}.")
DROPS = ("{} put down the {}.", "{} left the {} there.")


def story(random: np.random.Generator) -> list[str]:
    """The lines of a story with three questions."""
    where: dict[str, str] = {}  # the room of a person, and of a thing that lies
    held: dict[str, str] = {}  # who has a thing
    lines: list[str] = []

    def one(of: tuple[str, ...] | list[str]) -> str:
        return of[int(random.integers(len(of)))]

    def tell(text: str) -> None:
        lines.append(f"{len(lines) + 1} {text}")

    def walk(person: str) -> None:
        where[person] = one([room for room in ROOMS if room != where.get(person)])
        tell(one(WALKS).format(person, where[person]))

    for number in range(SENTENCES):
        person = one(PEOPLE)
        free = [thing for thing in THINGS if thing not in held and where.get(thing) in (None, where.get(person))]
        own = [thing for thing, who in held.items() if who == person]
        chance = random.random()
        if person not in where or chance < 0.5 or not (free or own):
            walk(person)
        elif free and (chance < 0.8 or not own):
            thing = one(free)
            held[thing] = person
            where.pop(thing, None)
            tell(one(TAKES).format(person, thing))
        else:
            thing = one(own)
            where[thing] = where[held.pop(thing)]
            tell(one(DROPS).format(person, thing))
        if number % 4 == 3:
            tell(question(random, where, held))
    return lines


def question(random: np.random.Generator, where: dict[str, str], held: dict[str, str]) -> str:
    """A question with its answer."""
    known = {thing: where.get(held.get(thing, thing)) for thing in THINGS}
    things = [thing for thing, room in known.items() if room is not None]
    if things and random.random() < 0.6:
        thing = things[int(random.integers(len(things)))]
        return f"Where is the {thing}?\t{known[thing]}"
    people = [person for person in PEOPLE if person in where]
    person = people[int(random.integers(len(people)))]
    return f"Where is {person}?\t{where[person]}"


if __name__ == "__main__":
    for seed, name in enumerate(STORIES):
        drawn = np.random.default_rng(seed)
        lines = [line for _ in range(STORIES[name]) for line in story(drawn)]
        path = Path(sys.argv[1], f"stories.{name}.txt.xz")
        path.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode(), preset=9))

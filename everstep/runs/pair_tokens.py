"""Pairs of texts as tokens: those to use, and how many of the others are left out for which reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.bucket_order import Ints
from everstep.data.pair_batches import TokenSequences
from everstep.data.readers.text_pairs import Pair
from everstep.data.text.language import BLOCK, Language
from everstep.data.text.pair_cache import stored_pairs
from everstep.errors import RunError
from everstep.runs.pair_section import PairSection
from everstep.storage.files import replace_file
from everstep.storage.reading import parse_json, read_small

SHOWN = 3
"""The most places that a note names for each reason."""
FILES = ("tokenizer.json", "tokenizer.target.json")
LANGUAGES, LARGEST = "languages.json", 1 << 28
"""The file with the tokens of each target language, and its most bytes."""
CACHED = 1 << 20
"""Fewest bytes of files, as they are stored, whose tokens are kept in the cache and mapped from there."""
_FORMAT = 2  # of what the cache keeps; another one where the same texts give other tokens or leave out other pairs
_FREE = ("train", "valid", "test", "batch_tokens", "mixing_temperature")
LeftOut = dict[str, tuple[int, list[str]]]
"""For each reason the number of pairs left out, and the first places."""


class NoPairs(Exception):
    """No pair is left to use; the message has the reasons."""


class Sides(NamedTuple):
    """The source language and the target language."""

    source: Language
    target: Language

    @property
    def joint(self) -> bool:
        """Whether both languages share one vocabulary."""
        return self.source.tokenizer.digest == self.target.tokenizer.digest

    def save(self, run: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.target.json`, which are equal if the vocabulary is joint, and
        `languages.json`."""
        for name, side in zip(FILES, self, strict=True):
            replace_file(run / name, side.tokenizer.to_bytes())
        replace_file(run / LANGUAGES, json.dumps(dict(self.target.own), allow_nan=False).encode())


def own_tokens(run: Path, vocabulary: int) -> dict[str, list[int]]:
    """The tokens of each target language, as `Sides.save` wrote them; {} for runs that know none.

    Raises:
        RunError: the file is damaged.
    """
    path = run / LANGUAGES
    if not path.exists():  # runs of an earlier version
        return {}
    try:
        found = parse_json(read_small(path, LARGEST))
        rows = {str(language): [int(token) for token in tokens] for language, tokens in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: expected the tokens of each language, as JSON ({error})") from None
    if any(not 0 <= token < vocabulary for tokens in rows.values() for token in tokens):
        raise RunError(f"{path}: expected tokens below {vocabulary}, the size of the vocabulary")
    return rows


class CodedPairs(NamedTuple):
    """Pairs as tokens.

    Attributes:
        source, target: the tokens, with `<eos>`.
        left_out: for each reason the number of pairs left out and the first places.
    """

    source: TokenSequences
    target: TokenSequences
    left_out: LeftOut

    @classmethod
    def joined(cls, each: Sequence[CodedPairs], chosen: list[Ints | None] | None = None) -> CodedPairs:
        """The pairs of all, one after another; of each those that are chosen, or all."""
        left_out: LeftOut = {}
        for one in each:
            for reason, (count, places) in one.left_out.items():
                before, named = left_out.get(reason, (0, []))
                left_out[reason] = before + count, [*named, *places][:SHOWN]
        source, target = (TokenSequences.joined([one[:2][side] for one in each], chosen) for side in (0, 1))
        return cls(source, target, left_out)


def coded_pairs(
    pairs: Callable[[], Iterator[Pair]],
    sides: Sides,
    section: PairSection,
    learn: bool,
    files: Sequence[tuple[int, Path, Path | None]],
    request: dict[str, Any],
) -> CodedPairs:
    """The tokens of pairs without blank ones; those of large files are written to the cache and mapped from there.

    Args:
        pairs: reads the texts.
        sides: both languages.
        section: a recipe's `data`.
        learn: also without pairs that are empty on one side, too long, or whose lengths differ too much.
        files: what is read, each with a number that says which name of the recipe it belongs to.
        request: JSON with what else determines the pairs.

    Raises:
        NoPairs: none is left.
    """
    left_out: LeftOut = {}
    paths = [path for _, *both in files for path in both if path is not None]
    if sum(path.stat().st_size for path in paths) < CACHED:
        parts = list(_blocks(pairs(), sides, section, left_out, learn)) or [
            (sides.source.encode([]), sides.target.encode([]))
        ]
        source, target = (
            TokenSequences.of(np.concatenate([p.tokens for p in side]), np.concatenate([p.lengths for p in side]))
            for side in zip(*parts, strict=True)
        )
    else:
        key = {
            **request,
            "format": _FORMAT,
            "tokenizers": [side.tokenizer.digest for side in sides],
            "tag": sides.source.tag,
            "files": [(number, *(None if path is None else _digest(path) for path in both)) for number, *both in files],
            "section": {name: value for name, value in section.model_dump(mode="json").items() if name not in _FREE},
        }
        source, target, left_out = _stored(key, lambda: _blocks(pairs(), sides, section, left_out, learn), left_out)
    if not len(source.lengths):
        raise NoPairs("; ".join(f"{count:,} {reason}" for reason, (count, _) in left_out.items()) or "there is none")
    return CodedPairs(source, target, left_out)


def _stored(
    key: dict[str, Any], blocks: Callable[[], Iterator[tuple[TokenSequences, TokenSequences]]], left_out: LeftOut
) -> tuple[TokenSequences, TokenSequences, LeftOut]:
    """The pairs from the cache, or written to it."""
    request = json.loads(json.dumps(key, allow_nan=False))
    found = stored_pairs(request, blocks, lambda: {"left_out": left_out})
    noted = {reason: (int(count), list(places)) for reason, (count, places) in found.notes["left_out"].items()}
    return found.source, found.target, noted


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, computed once in a process while its size and time are the same."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _blocks(
    pairs: Iterator[Pair], sides: Sides, section: PairSection, left_out: LeftOut, learn: bool
) -> Iterator[tuple[TokenSequences, TokenSequences]]:
    """The tokens of the pairs to use, some at a time."""
    tags = int(sides.source.tag is not None)
    while block := list(islice(pairs, BLOCK)):
        source, target = (side.encode(pair.texts[at] for pair in block) for at, side in enumerate(sides))
        kept = _kept(block, source.lengths - tags, target.lengths, left_out, section, learn)
        yield source.select(kept), target.select(kept)


def _kept(
    block: list[Pair],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    left_out: LeftOut,
    section: PairSection,
    learn: bool,
) -> NDArray[np.int64]:
    """The numbers of the pairs to use, of a block with these numbers of tokens. Counts others in `left_out`."""
    longest, ratio = section.max_length, section.max_ratio or np.inf
    blank = np.array([not (pair.source or pair.target) for pair in block])
    reasons = {"blank on both sides": blank}
    if learn:
        half = np.array([not (pair.source and pair.target) for pair in block]) & ~blank
        reasons["empty on one side"] = half
        reasons[f"longer than {longest} tokens (data.max_length)"] = long = np.maximum(one, other) - 1 > longest
        apart = np.maximum(one, other) > ratio * np.minimum(one, other)
        reasons[f"of lengths too far apart (data.max_ratio={ratio:g})"] = apart & ~half & ~long
    for reason, found in reasons.items():
        count, places = left_out.get(reason, (0, []))
        for at in np.flatnonzero(found)[: SHOWN - len(places)]:
            places.append(f"{block[at].path.name}, line {block[at].line}")
        if found.any():
            left_out[reason] = count + int(found.sum()), places
    return np.flatnonzero(~np.logical_or.reduce(list(reasons.values())))

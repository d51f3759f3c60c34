"""What unknown words do to a score: `<unk>` is easier to foresee than the words that it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from everstep.data import Tokenizer
from everstep.data.text.vocabulary import UNK

BOUNDS = ("bits_per_char", "bits_per_byte", "word_perplexity")
"""Measures per something other than tokens: they compare models of any vocabulary, so they have to pay for all text."""


def unknown_measures(unknown: int, tokens: int, tokenizer: Tokenizer, text: Iterable[str]) -> dict[str, Any]:
    """What stands in a score beside its measures, given how many of its tokens are `<unk>`.

    Args:
        unknown: tokens that are `<unk>`.
        tokens: tokens in all.
        tokenizer: whose `<unk>` it is.
        text: the text in blocks, to see where it says `<unk>` itself, as Penn Treebank does; read only if need be.

    Returns:
        nothing for a vocabulary without `<unk>`; else unknown, unknown_share (0 to 1), and lower_bounds: the names of
        the measures that would be larger if every `<unk>` had to be spelled. None is where all of them are written so.
    """
    if tokenizer.unk_id is None:
        return {}
    found: dict[str, Any] = {"unknown": unknown, "unknown_share": unknown / max(tokens, 1)}
    if unknown and unknown > _written(tokenizer, text):
        found["lower_bounds"] = list(BOUNDS)
    return found


def _written(tokenizer: Tokenizer, text: Iterable[str]) -> int:
    if tokenizer.kind != "words":
        return 0
    return sum(tokenizer.normalize(block).split().count(UNK) for block in text)


def shown(scores: Mapping[str, Any], measure: str, digits: int = 4) -> str:
    """A measure as it is printed: a lower bound as `≥ 0.1900`."""
    sign = "≥ " if measure in scores.get("lower_bounds", ()) else ""
    return f"{sign}{scores[measure]:.{digits}f}"


def told(scores: Mapping[str, Any]) -> str:
    """The share of `<unk>` in words, or nothing where there is none."""
    share = scores.get("unknown_share", 0.0)
    return f"{100 * share:.2f} % of the tokens are <unk>" if share else ""

"""The effect of unknown words on measures: `<unk>` is easier to predict than the words it replaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from everstep.data import Tokenizer
from everstep.data.text.vocabulary import UNK

BOUNDS = ("bits_per_char", "bits_per_byte", "word_perplexity")
"""Measures that are not per token. They compare models with any vocabulary, so they must account for all text."""


def unknown_measures(unknown: int, tokens: int, tokenizer: Tokenizer, text: Iterable[str]) -> dict[str, Any]:
    """Entries about `<unk>` to report beside the measures of a text.

    Args:
        unknown: number of `<unk>` tokens.
        tokens: total number of tokens.
        tokenizer: the tokenizer of the text.
        text: the text in blocks, to count literal `<unk>` as in the Penn Treebank; read only if needed.

    Returns:
        An empty dict for a vocabulary without `<unk>`; else unknown, unknown_share (0 to 1), and lower_bounds: the
        names of the measures that would be larger if every `<unk>` had to be spelled (none if all are literal).
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
    """A measure as text; a lower bound as `≥ 0.1900`."""
    sign = "≥ " if measure in scores.get("lower_bounds", ()) else ""
    return f"{sign}{scores[measure]:.{digits}f}"


def told(scores: Mapping[str, Any]) -> str:
    """A sentence about the share of `<unk>`, or "" if there is none."""
    share = scores.get("unknown_share", 0.0)
    return f"{100 * share:.2f} % of the tokens are <unk>" if share else ""

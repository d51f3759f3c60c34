"""Measures of language models: bits per character, perplexity and others."""

from __future__ import annotations

import math

MEANING = {
    "loss": "nats per token",
    "unknown": "tokens that are <unk>, of which nothing is known but that they are rare",
    "unknown_share": "of all tokens",
    "nats_per_token": "mean of -ln p",
    "bits_per_token": "mean of -log2 p",
    "perplexity": "exp of nats per token",
    "bits_per_char": "whatever the tokens, comparable between models of the same text",
    "bits_per_byte": "as UTF-8",
    "word_perplexity": "per word and line end, whatever the tokens",
}
"""A description of each measure."""


def text_measures(nats: float, tokens: int, chars: int, size: int, words: int) -> dict[str, float]:
    """Measures of a language model on a text, from the mean loss per token.

    Args:
        nats: mean loss in nats per token.
        tokens: number of scored tokens.
        chars: number of characters, line ends included.
        size: number of bytes in UTF-8, line ends included.
        words: number of words, each line end counted as one (the `<eos>` of word models).

    Returns:
        nats_per_token, bits_per_token, perplexity (per token), bits_per_char, bits_per_byte, word_perplexity.
    """
    total = nats * tokens
    return {
        "nats_per_token": nats,
        "bits_per_token": nats / math.log(2),
        "perplexity": _exp(nats),
        "bits_per_char": total / math.log(2) / max(chars, 1),
        "bits_per_byte": total / math.log(2) / max(size, 1),
        "word_perplexity": _exp(total / max(words, 1)),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf

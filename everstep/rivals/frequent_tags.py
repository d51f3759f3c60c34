"""A baseline for taggers: the most frequent tag of each word."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence


def most_frequent_tags(
    words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], others: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Tag each word of other sentences with its most frequent tag in training.

    Unknown words get the most frequent tag of the words that occur once in training (of all words, if there are none).

    Args:
        words, tags: the training sentences and their tags.
        others: the sentences to tag.

    Example:
        >>> most_frequent_tags([["the", "end", "the"]], [["DET", "NOUN", "DET"]], [["the", "beginning"]])
        [['DET', 'NOUN']]
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence, of_words in zip(words, tags, strict=True):
        for word, tag in zip(sentence, of_words, strict=True):
            counts[word][tag] += 1
    once = Counter(next(iter(found)) for found in counts.values() if found.total() == 1)
    rare = _best(once or sum(counts.values(), Counter()))
    best = {word: _best(found) for word, found in counts.items()}
    return [[best.get(word, rare) for word in sentence] for sentence in others]


def _best(found: Counter[str]) -> str:
    return min(found, key=lambda tag: (-found[tag], tag))

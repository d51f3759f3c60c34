"""Whether one system translates better than another on the same texts: paired bootstrap resampling of BLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
Statistics = NDArray[np.int64]
"""(…, 10): words of the translation and of the reference; n-grams that match, and all, for n = 1 … 4."""
_DRAWN = 1 << 22
"""Most numbers drawn at a time."""


def bleu_statistics(
    found: Sequence[str], references: Sequence[str], tokenised: bool = False, lowercase: bool = False
) -> Statistics:
    """What BLEU counts in each text, (texts, 10); BLEU of several texts is `bleu_of` the sum of their rows.

    >>> bleu_statistics(["a b c"], ["a b d"], tokenised=True).tolist()
    [[3, 3, 2, 1, 0, 0, 3, 2, 1, 0]]

    Args:
        found, references: the translations and one reference for each.
        tokenised: whether spaces separate the words; else sacreBLEU's tokenizer 13a splits them.
        lowercase: whether to ignore case.

    Raises:
        ValueError: there are no texts, or not one reference for each.
    """
    if len(found) != len(references) or not found:
        raise ValueError(f"expected one reference for each text, got {len(found)} and {len(references)}")
    split = _split_13a() if not tokenised else _split_at_spaces
    rows = []
    for one, other in zip(found, references, strict=True):
        words, wanted = (split(text.lower() if lowercase else text) for text in (one, other))
        matching, every = [], []
        for order in range(1, ORDERS + 1):
            grams, known = _grams(words, order), _grams(wanted, order)
            matching.append((grams & known).total())
            every.append(grams.total())
        rows.append([len(words), len(wanted), *matching, *every])
    return np.array(rows, np.int64)


def _split_at_spaces(text: str) -> list[str]:
    return text.split()


def _split_13a() -> Callable[[str], list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    return lambda text: tokenizer(text.rstrip()).split()


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu_of(sums: NDArray[np.integer]) -> NDArray[np.float64]:
    """BLEU (0 to 100) of sums of statistics (…, 10), as sacreBLEU with exponential smoothing.

    BLEU = 100 · min(1, e^(1 − r/c)) · (Π p_n)^(1/4), p_n = matching n-grams / n-grams. The k-th p_n without a match is
    2^(−k) / n-grams (smoothing of mteval, "exp"). It is 0 if nothing matches or a text has no 4-gram.

    Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002; Chen and Cherry
    2014 for the smoothing.
    """
    numbers = np.asarray(sums, np.float64)
    c, r = numbers[..., 0], numbers[..., 1]
    matching, every = numbers[..., 2 : 2 + ORDERS], numbers[..., 2 + ORDERS :]
    none = matching == 0
    smoothed = np.where(none, 0.5 ** np.cumsum(none, -1), matching)
    log_p = np.log(smoothed) - np.log(np.maximum(every, 1))
    penalty = np.where(c < r, np.exp(1 - r / np.maximum(c, 1e-300)), 1.0)
    legal = matching.any(-1) & every.all(-1)
    bleu: NDArray[np.float64] = np.where(legal, 100 * penalty * np.exp(log_p.mean(-1)), 0.0)
    return bleu


class PairedBootstrap(NamedTuple):
    """Two systems on the same texts.

    Attributes:
        one, other: BLEU of each, 0 to 100.
        low, high: the middle 95 % of `one` − `other` over the resamples.
        wins: the share of resamples in which `one` is better; ties count half.
        p: two-sided p-value of no difference: the share of resamples whose difference is as far from its mean as
            `one` − `other` is from 0.
        texts: number of texts.
    """

    one: float
    other: float
    low: float
    high: float
    wins: float
    p: float
    texts: int

    @property
    def difference(self) -> float:
        """`one` − `other`."""
        return self.one - self.other


def paired_bootstrap(one: Statistics, other: Statistics, samples: int = 1000, seed: int = 0) -> PairedBootstrap:
    """Paired bootstrap resampling: BLEU of both systems on `samples` draws of as many texts, with replacement.

    Source: Koehn, "Statistical significance tests for machine translation evaluation", 2004. The p-value shifts
    the differences of the resamples to a mean of 0, the hypothesis of no difference (Riezler and Maxwell 2005). It is
    not that of sacreBLEU, which shifts their absolute values.

    >>> same = bleu_statistics(["a b c d e"] * 5, ["a b c d f"] * 5, tokenised=True)
    >>> paired_bootstrap(same, same).p
    1.0

    Args:
        one, other: (texts, 10), the statistics of two systems, in the same order of texts.
        samples: number of resamples.
        seed: the same for the same figures.

    Raises:
        ValueError: the systems have other numbers of texts, there are none, or `samples` is below 1.

    Known limit: it treats texts as independent, and says nothing of another training of the same recipe.
    """
    if one.shape != other.shape or not len(one):
        raise ValueError(f"paired_bootstrap: expected the same texts of both, got {len(one)} and {len(other)}")
    if samples < 1:
        raise ValueError(f"paired_bootstrap: samples should be at least 1, but is {samples}")
    random = np.random.default_rng(seed)
    texts, differences = len(one), []
    at_once = max(1, _DRAWN // texts)
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        drawn = random.multinomial(texts, np.full(texts, 1 / texts), size=count)
        differences.append(bleu_of(drawn @ one) - bleu_of(drawn @ other))
    every = np.concatenate(differences)
    first, second = float(bleu_of(one.sum(0))), float(bleu_of(other.sum(0)))
    far = np.abs(every - every.mean()) >= abs(first - second)
    low, high = np.percentile(every, [2.5, 97.5])
    return PairedBootstrap(
        one=first,
        other=second,
        low=float(low),
        high=float(high),
        wins=float(((every > 0) + 0.5 * (every == 0)).mean()),
        p=float((far.sum() + 1) / (samples + 1)),
        texts=texts,
    )

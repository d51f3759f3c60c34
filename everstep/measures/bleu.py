"""Quality of translations against references: BLEU and chrF from sacreBLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def translation_measures(
    found: Sequence[str], references: Sequence[str], tokenised: bool = False, lowercase: bool = False
) -> dict[str, Any]:
    """Corpus BLEU (Papineni 2002) and chrF (Popović 2015), with sacreBLEU's signatures (Post 2018).

    BLEU = 100 · min(1, e^(1 − r/c)) · (Π_n p_n)^(1/4), n = 1 … 4, where p_n is the share of n-grams of the translations
    that occur in their references, and c and r are the numbers of words of all translations and of all references. chrF
    is the F₂ score of character n-grams up to 6.

    >>> measures = translation_measures(["a man walks a dog ."], ["a man walks a dog ."], tokenised=True)
    >>> round(measures["bleu"], 6), measures["bleu_signature"][:36]
    (100.0, 'nrefs:1|case:mixed|eff:no|tok:none|s')

    Args:
        found, references: the translations and one reference for each.
        tokenised: whether spaces separate the words; else sacreBLEU's tokenizer 13a splits them.
        lowercase: whether to ignore case.

    Returns:
        bleu and chrf from 0 to 100, brevity_penalty, length_ratio c/r, bleu_signature, chrf_signature.

    Raises:
        ValueError: there are no texts, or not one reference for each.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(found) != len(references) or not found:
        raise ValueError(f"expected one reference for each text, got {len(found)} and {len(references)}")
    bleu = BLEU(tokenize="none" if tokenised else "13a", lowercase=lowercase, force=tokenised)
    chrf = CHRF(lowercase=lowercase)
    one, other = bleu.corpus_score(list(found), [list(references)]), chrf.corpus_score(list(found), [list(references)])
    return {
        "bleu": one.score,
        "chrf": other.score,
        "brevity_penalty": one.bp,
        "length_ratio": one.sys_len / max(one.ref_len, 1),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }

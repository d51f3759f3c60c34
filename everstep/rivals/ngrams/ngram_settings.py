"""The settings of an n-gram model, and its estimation from a tokenised text."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from everstep.data import Corpus, Tokenizer
from everstep.rivals.ngrams.kneser_ney import kneser_ney
from everstep.rivals.ngrams.ngram_counts import count_ngrams
from everstep.rivals.ngrams.ngram_table import NGramTable
from everstep.rivals.ngrams.workspace import Workspace
from everstep.sections import Count, Positive, Section, Whole


class NGramSection(Section):
    """Interpolated modified Kneser-Ney (Chen & Goodman 1999), or a model of another program."""

    order: int = Field(5, ge=1, le=32)
    """N: words of the longest n-grams; N - 1 words of context"""
    prune: tuple[Whole, ...] = (0,)
    """by order from 1 on: n-grams that occur at most so often are left out; the last entry holds for higher orders"""
    fallback_discounts: tuple[Positive, Positive, Positive] | None = None
    """D₁, D₂, D₃₊ of orders whose discounts are undefined, as on small texts, such as [0.5, 1, 1.5]; null: an error"""
    memory_mib: Count = 2048
    """memory for counting; what exceeds it lies in temporary files"""
    arpa: str | None = None
    """an ARPA file with vocabulary and n-grams, in place of counting data.train"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Thresholds that fall, and discounts above the counts they are taken from."""
        if not self.prune or self.prune[0] != 0 or list(self.prune) != sorted(self.prune):
            yield (
                "prune",
                f"expected thresholds that begin with 0 and do not fall, such as [0,0,1]; got {[*self.prune]}",
            )
        elif len(self.prune) > self.order:
            yield "prune", f"expected at most {self.order} thresholds, one for each order; got {len(self.prune)}"
        if self.fallback_discounts and any(d > k for k, d in enumerate(self.fallback_discounts, 1)):
            yield "fallback_discounts", f"expected at most 1, 2 and 3; got {[*self.fallback_discounts]}"


def fitted_table(corpus: Corpus, tokenizer: Tokenizer, section: NGramSection) -> NGramTable:
    """The table of a text, in which every sequence of the corpus stands by itself.

    <unk> is a word like any other: it has the count of the unknown words of the text, and γ / V if there are none, as
    KenLM's <unk> has.

    Raises:
        DataError: discounts are undefined.
    """
    work = Workspace(section.memory_mib << 20)
    begin, size = tokenizer.begin_id, tokenizer.vocab_size
    levels = count_ngrams(corpus.tokens, corpus.starts, begin, size, section.order, work)
    return kneser_ney(levels, size, work, prune=section.prune, fallback=section.fallback_discounts)

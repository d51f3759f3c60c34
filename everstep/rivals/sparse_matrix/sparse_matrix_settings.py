"""The settings of a sparse non-negative matrix model, and its estimation from a tokenised text."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from everstep.data import Corpus, Tokenizer
from everstep.rivals.sparse_matrix.context_kinds import context_keys, context_kinds, words_before
from everstep.rivals.sparse_matrix.count_adjustment import fitted_adjustment
from everstep.rivals.sparse_matrix.pair_counts import count_pairs
from everstep.rivals.sparse_matrix.sparse_matrix_table import Floats, SparseMatrixTable
from everstep.sections import Count, Section, Whole


class SparseMatrixSection(Section):
    """A sparse non-negative matrix of n-grams, skip-grams and words (Shazeer, Pelemans & Chelba 2015)."""

    order: int = Field(5, ge=1, le=16)
    """N: words of the longest n-grams; N - 1 words of context"""
    skips: Whole = Field(3, le=16)
    """largest number of skipped words of skip-grams; 0: no skip-grams"""
    skip_words: int = Field(2, ge=1, le=4)
    """largest number of context words of skip-grams"""
    fitted_tokens: Count = 100_000
    """tokens of the training text, drawn at random, that the adjustments are learned on"""


def fitted_matrix(corpus: Corpus, tokenizer: Tokenizer, section: SparseMatrixSection, seed: int) -> SparseMatrixTable:
    """The matrix of a text, in which every sequence of the corpus stands by itself.

    All counts are in memory, about 75 bytes for each feature and word that occur together, and 1.6 KiB for each word
    that the adjustments are learned on.
    """
    kinds = context_kinds(section.order, section.skips, section.skip_words)
    tokens, size = np.asarray(corpus.tokens), tokenizer.vocab_size
    reach = max((distance for kind in kinds for distance in kind), default=0)
    before = words_before(tokens, corpus.starts, tokenizer.begin_id, reach)
    counted = [count_pairs(kind, tokens, before, size) for kind in kinds]
    random, total = np.random.default_rng(seed), len(tokens)
    chosen = np.sort(random.choice(total, min(total, section.fitted_tokens), replace=False))
    near = [word[chosen] for word in before]
    contexts = [one.find(*context_keys(kind, near)) for kind, one in zip(kinds, counted, strict=True)]
    adjustment = fitted_adjustment(counted, contexts, tokens[chosen].astype(np.int64), size)
    sums: list[Floats] = []
    values = []
    for kind, one in enumerate(counted):
        context = one.pairs // size
        found = adjustment.values(kind, one.totals[context], one.counts).astype(np.float32)
        values.append(found)
        sums.append(np.bincount(context, found, len(one.keys)).astype(np.float64))
    keys, pairs = [one.keys for one in counted], [one.pairs for one in counted]
    return SparseMatrixTable(size, kinds, keys, pairs, sums, values, float(np.exp(adjustment.uniform)))

"""Language models of counted n-grams, without recurrence."""

from everstep.rivals.ngrams.kneser_ney import kneser_ney
from everstep.rivals.ngrams.ngram_counts import OrderCounts, count_ngrams
from everstep.rivals.ngrams.ngram_table import NGramTable

__all__ = ["NGramTable", "OrderCounts", "count_ngrams", "kneser_ney"]

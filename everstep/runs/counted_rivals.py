"""Counts beside a language model: Kneser-Ney n-grams of the same tokens."""

from __future__ import annotations

from typing import Any

from everstep.data.text.perplexity import text_measures
from everstep.networks.ngram_model import NGramModel
from everstep.rivals.ngrams.ngram_settings import NGramSection, fitted_table
from everstep.runs.text_data import exact_batches
from everstep.runs.text_task import TextTask
from everstep.state import State

ORDERS = {"words": (3, 5), "bpe": (3, 5), "unigram": (3, 5), "chars": (5, 8), "bytes": (5, 8)}
"""The orders of the n-grams, by kind of token."""


def counted_rivals(task: TextTask[Any], split: str) -> list[dict[str, Any]]:
    """The measures of n-gram models of the training tokens on a split.

    They cross line ends where the run does (`data.sequence`). Orders whose discounts are undefined have 0.5, 1 and 1.5.
    """
    found, corpus = [], task.corpus(split)
    for order in ORDERS[task.tokenizer.kind]:
        section = NGramSection(order=order, fallback_discounts=(0.5, 1, 1.5))
        model = NGramModel(fitted_table(task.corpus("train"), task.tokenizer, section))
        batches = exact_batches(task.recipe.data, corpus, task.tokenizer)
        nats, tokens = 0.0, 0
        state: State = None
        for index in range(len(batches)):
            batch = batches.batch(0, index)
            loss = model.loss(batch, state)
            nats, tokens = nats + float(loss.reported.sum()), tokens + batch.count
            state = loss.state if batches.carries_state else None
        measures = text_measures(nats / tokens, tokens, corpus.chars, corpus.bytes, corpus.words)
        found.append({"name": f"Kneser-Ney, order {order}", **measures})
    return found

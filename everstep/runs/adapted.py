"""Measures of a model that adapts to the text before each token, with settings chosen on the validation text."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from everstep.data.batches import Batches, TokenBatch
from everstep.data.text.perplexity import text_measures
from everstep.data.text.unknowns import unknown_measures
from everstep.errors import RunError
from everstep.measures.mixing import em_weights
from everstep.networks.continuous_cache import cached_probabilities
from everstep.networks.dynamic_evaluation import DynamicRule, dynamic_nats, mean_squares
from everstep.networks.token_model import TokenModel
from everstep.runs.capabilities import Adaptation
from everstep.runs.task import Progress
from everstep.runs.text_data import exact_batches
from everstep.runs.text_task import TextTask

CACHE = 500
SHARPNESS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)
"""θ that are tried on the validation text."""
RATES = (0.0005, 0.001, 0.002, 0.004)
"""η that are tried on its first TRIED targets."""
TRIED = 8000


def adapted_measures(
    task: TextTask[Any],
    model: TokenModel,
    split: str,
    how: Adaptation,
    progress: Progress,
) -> dict[str, Any]:
    """The measures on a split by a continuous cache, or by dynamic evaluation; `adapted` says with which settings.

    Raises:
        RunError: the text is not one stream, or the run has no validation text to choose settings on.
    """
    if task.recipe.data.sequence != "stream":
        raise RunError("a model adapts to a text that is read in order: data.sequence should be stream")
    if "valid" not in task.splits():
        raise RunError("the settings of an adaptation are chosen on the validation text, which this run lacks")
    corpus = task.corpus(split)
    test, valid = (exact_batches(task.recipe.data, task.corpus(name), task.tokenizer) for name in (split, "valid"))
    if how == "cache":
        nats, count, told = _cached(model, test, valid, progress)
    else:
        # of a copy, since a softmax that is told its counts begins anew
        learn = task.batches("train", copy.deepcopy(model), "learn")
        nats, count, told = _dynamic(model, test, valid, learn, progress)
    return {
        "tokens": count,
        "loss": nats / count,
        "adapted": told,
        **unknown_measures(corpus.unknown, count, task.tokenizer, task.texts.read(split)),
        **text_measures(nats / count, count, corpus.chars, corpus.bytes, corpus.words),
    }


def _cached(
    model: TokenModel, test: Batches[TokenBatch], valid: Batches[TokenBatch], progress: Progress
) -> tuple[float, int, str]:
    plain, caches = cached_probabilities(model, valid, CACHE, SHARPNESS)
    weights = [em_weights(np.stack([plain, cache])) for cache in caches]
    likelihoods = [np.log(w @ np.stack([plain, cache])).mean() for w, cache in zip(weights, caches, strict=True)]
    best = int(np.argmax(likelihoods))
    plain, caches = cached_probabilities(model, test, CACHE, SHARPNESS[best : best + 1], progress)
    mixed = weights[best] @ np.stack([plain, caches[0]])
    told = f"continuous cache of {CACHE} tokens, sharpness {SHARPNESS[best]:g}, weight {weights[best][1]:.3f}"
    return -float(np.log(mixed).sum()), len(mixed), told


def _dynamic(
    model: TokenModel,
    test: Batches[TokenBatch],
    valid: Batches[TokenBatch],
    learn: Any,
    progress: Progress,
) -> tuple[float, int, str]:
    rms = mean_squares(model, learn, DynamicRule(0).steps)
    tried = {rate: dynamic_nats(model, valid, rms, DynamicRule(rate), TRIED)[0] for rate in RATES}
    rule = DynamicRule(min(tried, key=tried.__getitem__))
    nats, count = dynamic_nats(model, test, rms, rule, progress=progress)
    return nats, count, f"dynamic evaluation, rate {rule.rate:g}, decay {rule.decay:g}, {rule.steps} tokens an update"

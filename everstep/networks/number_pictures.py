"""What a classifier of numbers says after each step of some sequences, and which numbers decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.look.number_relevance import RelevantSequence, draw_number_relevance
from everstep.look.over_time import MOST_CLASSES, DrawnSequence, draw_over_time
from everstep.look.passage import Passage
from everstep.networks.classifying import class_probabilities, to_score
from everstep.networks.number_classifier import NumberClassifier
from everstep.networks.number_contributions import number_contributions
from everstep.networks.number_scaling import NumberScaling

MOST_READ = 64
"""Most numbers of steps after which a sequence is read."""


def shown_numbers(
    model: NumberClassifier, scaling: NumberScaling, shown: Sequence[tuple[str, NDArray[Any]]], out: Path
) -> Iterator[tuple[Path, str]]:
    """The pictures of sequences: what is said after each step, and which numbers decide."""
    yield out / "over-time.png", over_time(model, scaling, shown, out / "over-time.png")
    yield out / "relevance.png", relevant_numbers(model, scaling, shown, out / "relevance.png")


def over_time(
    model: NumberClassifier, scaling: NumberScaling, shown: Sequence[tuple[str, NDArray[Any]]], path: Path
) -> str:
    """Draw sequences, each with its class ("" if unknown), and the probabilities after each step; returns what to see.

    A sequence is read anew for each number of steps, since both directions may be read.
    """
    return draw_over_time([_drawn(model, scaling, label, steps) for label, steps in shown], path)


def _drawn(model: NumberClassifier, scaling: NumberScaling, label: str, steps: NDArray[Any]) -> DrawnSequence:
    scaled = scaling.scaled(steps)
    read = np.unique(np.linspace(1, len(steps), MOST_READ).round().astype(np.int64))
    p = class_probabilities(model, to_score([scaled[:many] for many in read]))
    names = model.answers.names
    likely = [int(place) for place in p.max(0).argsort()[::-1][:MOST_CLASSES]]
    if label in names and names.index(label) not in likely:
        likely[-1] = names.index(label)
    told, _ = model.answers.said(p[-1])
    what = told.replace("\t", " ")
    title = f"{label}: read as {what}" if label else what
    plain = steps if scaling.frames else steps.astype(np.float64)
    return DrawnSequence(
        title, label, scaling.columns, plain, read, {names[k]: p[:, k] for k in likely}, attention_of(model, scaled)
    )


def relevant_numbers(
    model: NumberClassifier, scaling: NumberScaling, shown: Sequence[tuple[str, NDArray[Any]]], path: Path
) -> str:
    """Draw sequences with the contribution of each number to the prediction; returns what to see."""
    batches = to_score([scaling.scaled(steps) for _, steps in shown])
    reasons = number_contributions(model, batches)
    drawn = []
    for (name, steps), p, why in zip(shown, class_probabilities(model, batches), reasons, strict=True):
        told = model.answers.said(p)[0].replace("\t", " ")
        plain = None if scaling.frames else steps.astype(np.float64)
        title = f"{name}: read as {told}" if name else told
        drawn.append(RelevantSequence(title, scaling.columns or ("frame",), plain, why.gradient))
    draw_number_relevance(drawn, path)
    origin = "the mean of training" if scaling.centred else "0"
    return (
        f"Gradient × input: to first order, what each number, compared with {origin}, adds to "
        f"{model.answers.lead_name}. Blue supports the answer, red opposes it."
    )


@torch.no_grad()
def attention_of(model: NumberClassifier, scaled: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """The weight of each step in the read-out, (T,); None without attention."""
    model.eval()
    inputs, lengths = torch.from_numpy(scaled)[None].to(model.device), torch.tensor([len(scaled)], device=model.device)
    found = model.body.attention(model.steps(inputs, lengths), lengths)
    return None if found is None else found[0].double().cpu().numpy()


@torch.no_grad()
def number_passage(model: NumberClassifier, scaled: NDArray[np.float32]) -> Passage:
    """A sequence as the cells read it, without step-by-step targets."""
    model.eval()
    inputs, lengths = torch.from_numpy(scaled)[None].to(model.device), torch.tensor([len(scaled)], device=model.device)
    steps = model.steps(inputs, lengths)[0]
    labels = [f"{place + 1} " for place in range(len(scaled))]
    return Passage(model.body.layer, steps, labels, list(range(len(scaled))), "step", "step")

"""Explanations of a classifier of numbers: what each number adds to the lead of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.networks.number_classifier import NumberClassifier

MOST_TOLD = 10
"""Most numbers that a line names."""


@dataclass(frozen=True)
class NumberContributions:
    """The contributions of the numbers of a sequence to its answer.

    Attributes:
        gradient: (T, D) x · ∂lead/∂x of each scaled number x ("gradient × input"): to first order, what the number,
            compared with the mean of training (unscaled numbers: with 0), adds to the lead of the answer over the next
            most probable one (several labels: to the log-odds of the most probable), in nats. Positive values support
            the answer. A missing number has 0: what is read in its place counts where it was measured. Of frames
            (T, 1), the sum over the frame.
        attention: (T,) the weight of each step in the read-out, with sum 1; None without attention.
    """

    gradient: NDArray[np.float64]
    attention: NDArray[np.float64] | None


def number_contributions(model: NumberClassifier, batches: Batches[LabelledBatch]) -> list[NumberContributions]:
    """The contributions for every sequence, in order; each is independent of the others.

    Known limits: first order alone; that a number is missing, and for how long, has no contribution of its own.
    """
    found: dict[int, NumberContributions] = {}
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        found.update(zip(batch.places.tolist(), _of_batch(model, batch), strict=True))
    return [found[place] for place in range(len(found))]


def _of_batch(model: NumberClassifier, given: LabelledBatch) -> Iterator[NumberContributions]:
    model.eval()
    batch = given.to(model.device)
    with torch.enable_grad():
        inputs = batch.inputs.to(next(model.parameters()).dtype).detach().requires_grad_()
        steps = model.steps(inputs, batch.lengths)
        lead = model.answers.lead(model.log_probs(model.read(steps, batch.lengths)))
        (slopes,) = torch.autograd.grad(lead.sum(), [inputs])
        weights = model.body.attention(steps.detach(), batch.lengths)
    products = (slopes * inputs.detach().nan_to_num()).flatten(2)
    if inputs.ndim > 3:
        products = products.sum(2, keepdim=True)
    gradient = products.double().cpu().numpy()
    attention = None if weights is None else weights.detach().double().cpu().numpy()
    for row, length in enumerate(batch.lengths.tolist()):
        yield NumberContributions(gradient[row, :length], None if attention is None else attention[row, :length])


def deciding_numbers(columns: Sequence[str], gradient: NDArray[Any], share: float = 0.5) -> str:
    """The numbers that decide, by column and step, marked: [+for+] and [-against-] the answer.

    Args:
        columns: the names of the D columns; a single one is not named.
        gradient: (T, D) contributions.
        share: least share of the largest contribution. At most `MOST_TOLD` numbers are named, the largest.

    Example:
        >>> deciding_numbers(["x", "y"], np.array([[0.1, 2.0], [-1.5, 0.0]]))
        '[+y@1+] [-x@2-]'
    """
    sizes = np.abs(gradient).ravel()
    least = share * sizes.max(initial=0.0)
    largest = [place for place in np.argsort(-sizes, kind="stable")[:MOST_TOLD] if sizes[place] >= least > 0]
    told = []
    for place in sorted(largest):
        step, column = divmod(int(place), gradient.shape[1])
        sign = "+" if gradient[step, column] > 0 else "-"
        name = f"{columns[column]}@{step + 1}" if len(columns) > 1 else str(step + 1)
        told.append(f"[{sign}{name}{sign}]")
    return " ".join(told)

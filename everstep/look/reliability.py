"""Reliability diagrams."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from everstep.look.style import COLOURS, GREY, canvas, label, legend, save
from everstep.measures import Reliability


def draw_reliability(
    found: Reliability, path: Path, temperature: float | None = None, several: bool = False, unit: str = "text"
) -> str:
    """Draw the share of correct predictions against their probability; returns the caption.

    Args:
        found: the predictions in bins.
        path: the PNG to write.
        temperature: the divisor of the logits, for the caption.
        several: whether a text has any number of labels; then each label of each text is a prediction.
        unit: the name of what is classified, for the axis.
    """
    share, counted = ("share that is there", "labels") if several else ("share that is right", f"{unit}s")
    figure = canvas(7.0, 8.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins, full = len(found.count), found.count > 0
    left = np.arange(bins) / bins
    upper.plot([0, 1], [0, 1], ":", color=GREY, label="perfect calibration")
    upper.bar(left[full], found.accuracy[full], 1 / bins, align="edge", color=COLOURS[4], edgecolor="white")
    upper.plot(found.confidence[full], found.accuracy[full], "o-", color=COLOURS[0], label=share)
    label(upper, "", share)
    upper.set_ylim(0, 1)
    legend(upper, loc="upper left")
    lower.bar(left, found.count, 1 / bins, align="edge", color=COLOURS[1], edgecolor="white")
    label(lower, f"probability of {'a label' if several else 'what is predicted'}", counted)
    lower.set_xlim(0, 1)
    save(figure, path)
    confidence, accuracy = (float(np.average(of, weights=found.count)) for of in (found.confidence, found.accuracy))
    p, true = f"{confidence:.1%}", f"{accuracy:.1%}"
    if several:
        lead = "overconfident" if confidence > accuracy else "underconfident"
        average = f"The mean probability of a label is {p}, and {true} of the labels are present: {lead}"
    else:
        lead = "overconfident" if confidence > accuracy else "underconfident"
        average = f"The mean confidence is {p}, the accuracy {true}: {lead}"
    heat = (
        ""
        if temperature is None
        else f" Probabilities use the temperature {temperature:.2f}, fitted to the validation split."
    )
    return (
        f"On the dotted line, probabilities are calibrated: 0.8 means right in 80 % of the cases. {average}. Expected "
        f"calibration error {found.ece:.3f}.{heat}"
    )

"""The trials of a study: how good each was in its turn, and by the value of each tuned key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from everstep.look.style import COLOURS, GREY, canvas, label, legend, save

MOST_KEYS = 6
_MARKS = {"trained": ("o", COLOURS[0]), "pruned": ("v", COLOURS[5])}
_FAILED = ("diverged", "refused")
_WORST = {False: 0.97, True: 0.03}
"""The height of trials without a value, at the end of the worst: the top, or the bottom if the highest is best."""


def draw_trials(
    trials: Sequence[Mapping[str, Any]],
    measure: str,
    highest: bool,
    path: Path,
    logarithmic: Sequence[str] = (),
    shares: Mapping[str, float] | None = None,
) -> str:
    """Draw the trials in their turn, and below against each of at most six keys; returns the caption.

    Args:
        trials: the records of `everstep.lab.tuning.tune`, of which one at least is trained.
        measure: the name of the measure.
        highest: whether its highest value is best.
        path: the PNG to write.
        logarithmic: the keys with a logarithmic axis.
        shares: the importance of each key, with which the panels are ordered.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    keys.sort(key=lambda key: -(shares or {}).get(key, 0))
    keys = keys[:MOST_KEYS]
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = canvas(4.2 + 3.4 * rows)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.2, *[1] * rows])
    whole = figure.add_subplot(grid[0, :])
    best = _in_turn(whole, trials, highest)
    label(whole, "trial", measure)
    whole.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(whole, loc="lower left", bbox_to_anchor=(0, 1), ncols=5)
    for index, key in enumerate(keys):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns], sharey=whole)
        _by_key(axes, trials, key, best, highest)
        share = f"  ({shares[key]:.0%})" if shares and key in shares else ""
        label(axes, f"{key}{share}", "" if index % columns else measure)
        axes.tick_params(labelleft=index % columns == 0)
        if key in logarithmic:
            axes.set_xscale("log")
    _limit(whole, trials)
    save(figure, path)
    return _words(trials, best, measure, highest, bool(shares))


def _in_turn(axes: Axes, trials: Sequence[Mapping[str, Any]], highest: bool) -> Mapping[str, Any]:
    """All trials and the best so far; returns the best."""
    for outcome, (mark, colour) in _MARKS.items():
        some = [trial for trial in trials if trial["outcome"] == outcome and trial["value"] is not None]
        numbers, values = [t["trial"] for t in some], [t["value"] for t in some]
        if some:
            axes.scatter(numbers, values, s=45, marker=mark, color=colour, label=f"{len(some)} {outcome}")
    for outcome, shade in zip(_FAILED, (COLOURS[1], GREY), strict=True):
        some = [trial for trial in trials if trial["outcome"] == outcome]
        top = axes.get_xaxis_transform()
        if some:
            at = [trial["trial"] for trial in some]
            axes.scatter(
                at, [_WORST[highest]] * len(at), marker="x", color=shade, label=f"{len(at)} {outcome}", transform=top
            )
    trained = [trial for trial in trials if trial["outcome"] == "trained"]
    values = [trial["value"] for trial in trained]
    so_far = np.maximum.accumulate(values) if highest else np.minimum.accumulate(values)
    axes.step([t["trial"] for t in trained], so_far, where="post", color=COLOURS[2], linewidth=2.2, label="best so far")
    return trained[int(np.argmax(values) if highest else np.argmin(values))]


def _by_key(axes: Axes, trials: Sequence[Mapping[str, Any]], key: str, best: Mapping[str, Any], highest: bool) -> None:
    known = [trial for trial in trials if key in trial["values"]]
    named = any(isinstance(trial["values"][key], str) for trial in known)
    names = sorted({str(trial["values"][key]) for trial in known}) if named else []
    for outcome, (mark, colour) in _MARKS.items():
        some = [trial for trial in known if trial["outcome"] == outcome and trial["value"] is not None]
        at = [names.index(str(t["values"][key])) if named else t["values"][key] for t in some]
        axes.scatter(at, [t["value"] for t in some], s=45, marker=mark, color=colour)
    for outcome, shade in zip(_FAILED, (COLOURS[1], GREY), strict=True):
        some = [trial for trial in known if trial["outcome"] == outcome]
        at = [names.index(str(t["values"][key])) if named else t["values"][key] for t in some]
        axes.plot(at, [best["value"]] * len(at), linestyle="")  # draws nothing, but widens the axis to hold them
        axes.scatter(at, [_WORST[highest]] * len(at), marker="x", color=shade, transform=axes.get_xaxis_transform())
    place = names.index(str(best["values"][key])) if named else best["values"][key]
    axes.scatter([place], [best["value"]], s=260, marker="o", facecolors="none", edgecolors=COLOURS[2], linewidths=2.2)
    if named:
        axes.set_xticks(range(len(names)), [name if len(name) < 16 else f"{name[:14]}…" for name in names])
        axes.margins(x=0.2)
    elif all(type(trial["values"][key]) is int for trial in known):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _limit(axes: Axes, trials: Sequence[Mapping[str, Any]]) -> None:
    """A logarithmic axis where values differ by more than ten times."""
    values = [trial["value"] for trial in trials if trial["value"] is not None and trial["outcome"] in _MARKS]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def _words(
    trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any], measure: str, highest: bool, shares: bool
) -> str:
    better = "highest" if highest else "lowest"
    share = (
        " The share beside a key says how much of what makes a trial good it explains (PED-ANOVA)." if shares else ""
    )
    pruned = sum(trial["outcome"] == "pruned" for trial in trials)
    told = " Triangles are trials that were stopped early, at their best value until then." if pruned else ""
    return (
        f"The {better} {measure} on the validation split is {best['value']:.4f}, that of trial {best['trial']} "
        f"(ringed).{told}{share} A gap as small as that between two seeds is no reason to prefer a value."
    )

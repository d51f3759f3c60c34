"""Predicted positions: errors on windows beside simple rules, tables of predictions, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.track_windows import TrackWindows
from everstep.errors import DataError
from everstep.look.drawn_forecasts import draw_by_step
from everstep.look.moving import DrawnTrack, animate, draw_paths
from everstep.networks.mover import Mover
from everstep.networks.number_scaling import NumberScaling
from everstep.rivals.moving_rules import rules
from everstep.runs.asked_numbers import AskedSequence
from everstep.runs.task import Prediction
from everstep.runs.track_data import check_whole_track

Floats = NDArray[np.float64]
RULE = "constant velocity"
EXAMPLES = 4
"""Tracks that are drawn."""
BLOCK = 256
"""Tracks predicted at a time."""


class PredictedTracks(NamedTuple):
    """N windows in units of the data: seen (N, W, D), true and predicted positions (N, H, D); the mean loss."""

    seen: Floats
    came: Floats
    ours: Floats
    loss: float


@torch.no_grad()
def predicted_tracks(
    model: Mover,
    windows: TrackWindows,
    scaling: NumberScaling,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PredictedTracks:
    """Run the model free over all windows."""
    model.eval()
    parts: list[tuple[Floats, Floats, Floats]] = []
    total, count = 0.0, 0
    for index in range(len(windows)):
        batch = windows.batch(0, index).to(model.device)
        _, ahead = model(batch.seen, windows.horizon)
        total += float((ahead - batch.ahead).square().mean(2).double().sum())
        count += batch.count
        seen, came, ours = (scaling.restored(part.cpu().double().numpy()) for part in (batch.seen, batch.ahead, ahead))
        parts.append((seen, came, ours))
        progress(index + 1, len(windows))
    seen, came, ours = (np.concatenate(some) for some in zip(*parts, strict=True))
    return PredictedTracks(seen, came, ours, total / count)


def distances(ours: Floats, came: Floats) -> Floats:
    """The mean distance from the true positions at each step ahead, (H,)."""
    return np.linalg.norm(ours - came, axis=2).mean(0)  # type: ignore[no-any-return]


def distance_figures(ours: Floats, came: Floats) -> dict[str, float]:
    """The mean distance over the horizon, and that of its last step."""
    by_step = distances(ours, came)
    return {"distance": float(by_step.mean()), "last_distance": float(by_step[-1])}


def track_figures(found: PredictedTracks) -> dict[str, Any]:
    """The figures of the model beside those of simple rules."""
    ours = distance_figures(found.ours, found.came)
    others = rule_figures(found.seen, found.came)
    steady = next(other for other in others if other["name"] == RULE)
    ratio = ours["last_distance"] / steady["last_distance"] if steady["last_distance"] else float("inf")
    return {
        "windows": len(found.came),
        "loss": found.loss,
        **ours,
        "to_constant_velocity": ratio,
        "better_by_last_distance": [o["name"] for o in others if o["last_distance"] < ours["last_distance"]],
        "by_step": distances(found.ours, found.came).tolist(),
        "rivals": others,
    }


def rule_figures(seen: Floats, came: Floats) -> list[dict[str, Any]]:
    """The figures of simple rules, from positions seen (N, W, D) and the true ones after (N, H, D)."""
    by_rule = rules(seen, came.shape[1])
    return [{"name": name, **distance_figures(ahead, came)} for name, ahead in by_rule.items()]


def watched(windows: TrackWindows, scaling: NumberScaling) -> tuple[Floats, Floats]:
    """The positions seen (N, W, D) and the true ones after (N, H, D) of all windows, in units of the data."""
    batches = [windows.batch(0, index) for index in range(len(windows))]
    seen, came = (np.concatenate([part.numpy() for part in parts]) for parts in
                  zip(*((batch.seen, batch.ahead) for batch in batches), strict=True))  # fmt: skip
    return scaling.restored(seen), scaling.restored(came)


@torch.no_grad()
def track_predictions(
    model: Mover, scaling: NumberScaling, asked: Iterable[AskedSequence], window: int
) -> Iterator[Prediction]:
    """The positions ahead of each track as CSV lines: a header, then a row a step.

    The last `window` positions of a track are read, as in training.

    Raises:
        DataError: a track has fewer than two positions, or one without a number.
    """
    yield Prediction(",".join(["unique_id", "ahead", *scaling.columns]), {})
    source = iter(asked)
    model.eval()
    while block := list(islice(source, BLOCK)):
        for one in block:
            check_whole_track(one.steps, f"the input, track {one.name!r}")
            if len(one.steps) < 2:
                raise DataError(f"the input: expected two positions or more of each track; {one.name!r} has "
                                f"{len(one.steps)}")  # fmt: skip
        read = [scaling.scaled(one.steps[-window:]) for one in block]
        lengths = torch.tensor([len(steps) for steps in read])
        seen = torch.zeros(len(block), int(lengths.max()), scaling.size)
        for row, steps in zip(seen, read, strict=True):
            row[: len(steps)] = torch.from_numpy(steps)
        _, ahead = model(seen.to(model.device), None, lengths.to(model.device))
        told = scaling.restored(ahead.cpu().double().numpy())
        for one, positions in zip(block, told, strict=True):
            for step, position in enumerate(positions.tolist(), 1):
                numbers = ",".join(f"{value:.6g}" for value in position)
                record = dict(zip(scaling.columns, position, strict=True))
                yield Prediction(f"{one.name},{step},{numbers}", {"unique_id": one.name, "ahead": step, **record})


def track_pictures(found: PredictedTracks, scaling: NumberScaling, out: Path) -> Iterator[tuple[Path, str]]:
    """Errors by step ahead; of positions in a plane their paths and an animation."""
    by_rule = rules(found.seen, found.came.shape[1])
    every = {"this run": distances(found.ours, found.came)}
    every |= {name: distances(ahead, found.came) for name, ahead in by_rule.items()}
    yield out / "errors-by-step.png", draw_by_step(every, "rows", out / "errors-by-step.png")
    if scaling.size != 2:
        return
    chosen = np.unique(np.linspace(0, len(found.came) - 1, EXAMPLES + 1)[:-1].round().astype(int))
    tracks = [DrawnTrack(found.seen[n], found.came[n], found.ours[n], by_rule[RULE][n]) for n in chosen]
    names = scaling.columns[0], scaling.columns[1]
    yield out / "paths.png", draw_paths(tracks, names, RULE, out / "paths.png")
    yield out / "moving.gif", animate(tracks, names, out / "moving.gif")

"""Motion: predict the next positions of tracks, running free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data.track_windows import TrackBatch, TrackWindows
from everstep.learn.objective import Loss
from everstep.networks.mover import Mover, MoverSection, track_losses
from everstep.networks.mover_forms import MoverStandIn, mover_forms
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.stand_ins import Runtime
from everstep.runs.asked_numbers import asked_form, asked_numbers
from everstep.runs.recipe import Recipe
from everstep.runs.task import Prediction, Progress, Purpose, Say, Task
from everstep.runs.track_data import SCORED, Tracks, TrackSection
from everstep.runs.tracks_ahead import (
    predicted_tracks,
    rule_figures,
    track_figures,
    track_pictures,
    track_predictions,
    watched,
)
from everstep.state import State
from everstep.storage.files import replace_file


class MotionRecipe(Recipe):
    """The recipe: tracks, and cells that move a position on."""

    data: TrackSection = TrackSection()
    model: MoverSection = MoverSection()


class Motion(Task[MotionRecipe]):
    """Predicts where things move: balls, pedestrians, ships."""

    Recipe = MotionRecipe
    extras = ("polars",)
    remedy = "pip install 'everstep[forecast]'"
    files = ("numbers.json",)
    reads = {"predict": "tracks.csv"}
    unit = "position"
    loss_unit = "squared error"
    shown = ("last_distance", "distance", "to_constant_velocity", "loss")
    meaning = {
        "loss": "mean squared error of a number of a position, scaled, running free",
        "distance": "mean distance from the true position, over the horizon",
        "last_distance": "the same at the last step of the horizon",
        "to_constant_velocity": "last_distance over that of constant velocity",
    }
    scaling: NumberScaling

    @cached_property
    def tracks(self) -> Tracks:
        """The files of the recipe."""
        return Tracks(self.recipe.data, self.recipe.seed)

    def prepare(self) -> None:
        """Fit the scaling to the training tracks."""
        self.scaling = self.tracks.scaling()

    def ready(self, say: Say) -> None:
        """Report the tracks and windows of every split."""
        for line in [*self.summary(), *self.tracks.told(self.scaling, self.recipe.model)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `numbers.json`."""
        replace_file(run / "numbers.json", self.scaling.to_bytes())

    def open(self, run: Path) -> None:
        """Read what `save` wrote."""
        self.scaling = NumberScaling.load(run / "numbers.json")

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.tracks.splits()

    def model(self) -> Mover:
        """A new `Mover`."""
        return Mover(self.scaling.size, self.recipe.model, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> TrackWindows:
        """Windows of a split: shuffled to learn from, in order otherwise."""
        learn = purpose == "learn"
        size = self.recipe.train.batch_size if learn else SCORED
        return self.tracks.windows(split, self.scaling, self.recipe.model, size, learn)

    def objective(self, model: Any, batch: TrackBatch, state: State) -> Iterator[Loss]:
        """The squared error of the horizon, running free, and of single steps within the window."""
        return track_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Distances from the true positions, beside those of simple rules."""
        return track_figures(predicted_tracks(model, self.batches(split, model, "score"), self.scaling, progress))

    def validate(self, model: Any) -> dict[str, float]:
        """The loss and the distances on the split "valid"."""
        found = track_figures(predicted_tracks(model, self.batches("valid", model, "validate"), self.scaling))
        return {name: value for name, value in found.items() if isinstance(value, float)}

    def digest(self, split: str) -> str:
        """A digest of the positions."""
        return self.tracks.digest(split)

    def summary(self) -> list[str]:
        """The tracks, for the card."""
        return [f"tracks: {self.recipe.data.train}", f"position: {', '.join(self.scaling.columns)}"]

    def asked_lines(self, verb: str) -> str:
        """Numbers."""
        return asked_form(self.scaling)

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """The positions ahead of each track: unique_id, ahead and the columns of the position."""
        asked = asked_numbers(lines, self.scaling, self.recipe.data.columns, self.recipe.data.padded)
        return track_predictions(model, self.scaling, asked, self.recipe.model.window)

    exported = staticmethod(mover_forms)

    def stand_in(self, runtime: Runtime) -> Mover:
        """The same in another runtime."""
        return MoverStandIn(self.recipe.model, runtime)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Distances by constant velocity, by standing still, and by mirrored walls."""
        return rule_figures(*watched(self.batches(split, None, "score"), self.scaling))

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Errors by step ahead, paths and an animation, from the data of the run."""
        found = predicted_tracks(model, self.batches(self.splits()[-1], model, "score"), self.scaling)
        yield from track_pictures(found, self.scaling, out)

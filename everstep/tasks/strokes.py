"""Pen strokes: p(next move of a pen | moves before it), to score, continue and make drawings and handwriting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data.move_batches import MoveBatch, MoveBatches
from everstep.data.readers.drawings import drawing_of, drawing_text
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.move_decoder import MoveSpeller, move_decoder
from everstep.networks.move_forms import MoveStandIn, move_forms
from everstep.networks.move_model import MoveModel, MoveSection, move_figures, move_losses
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.scoring import Score
from everstep.networks.stand_ins import Runtime
from everstep.runs.drawing_answers import drawing_rivals, rendered_drawing, scored_drawings
from everstep.runs.drawing_data import Drawings, DrawingSection, scaled_moves
from everstep.runs.drawing_pictures import chosen_drawing, drawing_pictures, move_passage
from everstep.runs.named_files import split_names
from everstep.runs.recipe import Recipe
from everstep.runs.task import Progress, Purpose, Say, Task
from everstep.state import State
from everstep.storage.files import replace_file


class StrokesRecipe(Recipe):
    """The recipe: drawings, and a stack of cells that reads moves."""

    data: DrawingSection = DrawingSection()
    model: MoveSection = MoveSection()
    decode: SamplingSection = SamplingSection(length=300)


class Strokes(Task[StrokesRecipe]):
    """Predicts the next move of a pen: trains on drawings, scores, continues and makes them."""

    Recipe = StrokesRecipe
    files = ("numbers.json",)
    unit = "point"
    shown = ("loss", "nats_per_drawing")
    meaning = {
        "loss": "-log p of a point given those before it, in nats: a density of scaled moves",
        "nats_per_drawing": "the same of a whole drawing, its end included",
        "move": "the part of the loss that tells where the point is",
        "pen": "the part that tells whether the pen is lifted, and where the drawing ends",
    }
    reads = {"score": "drawings.jsonl"}
    renders = (".svg",)
    typed = False
    scaling: NumberScaling

    @cached_property
    def drawings(self) -> Drawings:
        """The files of the recipe."""
        return Drawings(self.recipe.data, self.recipe.seed)

    def prepare(self) -> None:
        """Fit the scale to the training drawings."""
        self.scaling = self.drawings.scaling()

    def ready(self, say: Say) -> None:
        """Report the drawings of every split."""
        for line in [*self.summary(), *self.drawings.told(self.scaling)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `numbers.json`."""
        replace_file(run / "numbers.json", self.scaling.to_bytes())

    def open(self, run: Path) -> None:
        """Read what `save` wrote."""
        self.scaling = NumberScaling.load(run / "numbers.json")

    def asked_lines(self, verb: str) -> str:
        """What a line to score holds."""
        return "One drawing per line: JSON [[Δx, Δy, lifted], …], lifted 1 where the pen leaves the paper behind it"

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return split_names(self.recipe.data)

    def model(self) -> MoveModel:
        """A new `MoveModel`."""
        return MoveModel(self.recipe.model, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> MoveBatches:
        """Drawings of a split: shuffled and changed to learn from, in order otherwise."""
        learn = purpose == "learn"
        return self.drawings.batches(split, self.scaling, *((self.recipe.train.batch_size, True) if learn else ()))

    def objective(self, model: Any, batch: MoveBatch, state: State) -> Iterator[Loss]:
        """−log p of each move and pen given those before them."""
        return move_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Nats of a point, of a drawing, and of moves and pens apart."""
        return move_figures(model, self.batches(split, model, "score"), progress)

    def digest(self, split: str) -> str:
        """A digest of the drawings."""
        return self.drawings.digest(split)

    def summary(self) -> list[str]:
        """The drawings, for the card."""
        scale = f"moves are divided by their deviation, {self.scaling.scale[0]:.4g}"
        return [f"drawings: {self.recipe.data.train}", scale]

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Nats of a point by one mixture for all moves, and by a Gaussian given the last move."""
        return drawing_rivals(self.drawings, self.scaling, split, self.recipe.model)

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of the drawing in each line, its end included; a density of scaled moves."""
        return scored_drawings(model, self.scaling, lines, first_line)

    def lines(self, split: str) -> list[str]:
        """The drawings of a split as text."""
        return [drawing_text(one) for one in self.drawings.of(split)]

    def decoder(self, model: Any, given: str) -> Decoder:
        """A decoder that continues the drawing `given`."""
        return move_decoder(model, scaled_moves(drawing_of(given, "the prompt"), self.scaling, "the prompt"))

    def speller(self) -> MoveSpeller:
        """Moves as text."""
        return MoveSpeller(self.scaling.scale[0])

    def rendered(self, text: str, suffix: str) -> bytes:
        """A drawing as an SVG picture."""
        return rendered_drawing(text)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """A drawing of the user's text, or of the held-out data, with the surprise of each point."""
        drawing = chosen_drawing(self.drawings, text)[:characters]
        return move_passage(model, scaled_moves(drawing, self.scaling, "the text"))

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Held-out drawings beside generated ones; surprise, and the density of each next point."""
        yield from drawing_pictures(model, self.drawings, self.scaling, text, out, self.recipe.decode.temperature)

    exported = staticmethod(move_forms)

    def stand_in(self, runtime: Runtime) -> MoveModel:
        """The same in another runtime."""
        return MoveStandIn(self.recipe.model, runtime)

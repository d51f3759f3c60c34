"""Question answering: p(answer | story, question), by a memory of sentences that is read in hops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data import Tokenizer
from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.learn.objective import Loss
from everstep.networks.class_pictures import figure_pictures
from everstep.networks.classifying import class_losses, measured_classes, to_learn, to_score
from everstep.networks.memory_forms import MemoryStandIn, memory_forms
from everstep.networks.memory_network import MemoryNetwork, MemoryNetworkSection
from everstep.networks.stand_ins import Runtime
from everstep.runs.class_task import ClassRecipe, ClassTask
from everstep.runs.labelled_answers import classes_of, kind_disagreements, read_classes, written_classes
from everstep.runs.story_answers import SHOWN, story_pictures, story_predictions, story_rivals, with_unknown
from everstep.runs.story_data import Stories, StorySection
from everstep.runs.task import Prediction, Progress, Purpose, Say
from everstep.state import State
from everstep.storage.files import replace_file


class QuestionAnsweringRecipe(ClassRecipe):
    """The recipe: stories with questions, a memory network, −log p of the answer."""

    data: StorySection = StorySection()
    model: MemoryNetworkSection = MemoryNetworkSection()


class QuestionAnswering(ClassTask[QuestionAnsweringRecipe]):
    """Answers questions on a story: bAbI's, or your own."""

    Recipe = QuestionAnsweringRecipe
    files = ("tokenizer.json", "classes.json")
    unit = "question"
    reads = {"predict": "stories.txt"}
    tokenizer: Tokenizer

    def problems(self) -> Iterator[str]:
        """Incompatible sections."""
        yield from kind_disagreements(self.recipe.data, self.recipe.objective)
        if self.recipe.objective.bptt is not None:
            yield "objective.bptt: expected null; a story is read as a whole"
        yield from super().problems()

    @cached_property
    def examples(self) -> Stories:
        """The files of the recipe."""
        return Stories(self.recipe.data, self.recipe.seed)

    def prepare(self) -> None:
        """Find the answers and the vocabulary of the training stories."""
        self.classes = classes_of(self.examples.learned(), self.recipe.data, self.recipe.objective)
        self.tokenizer = self.examples.tokenizer()

    def ready(self, say: Say) -> None:
        """Report the questions of every split."""
        for line in [*self.summary(), *self.examples.told(self.answers, self.recipe.model.memory)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `tokenizer.json` and `classes.json`."""
        replace_file(run / "tokenizer.json", self.tokenizer.to_bytes())
        replace_file(run / "classes.json", written_classes(self.classes))

    def open(self, run: Path) -> None:
        """Read the files of `save`."""
        self.tokenizer, self.classes = Tokenizer.load(run / "tokenizer.json"), read_classes(run / "classes.json")

    def model(self) -> MemoryNetwork:
        """A new `MemoryNetwork`."""
        calibrated = self.recipe.objective.calibrated
        return MemoryNetwork(self.tokenizer.vocab_size, self.answers, self.recipe.model, calibrated)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[LabelledBatch]:
        """Batches of stories of near-equal length."""
        learn, recipe = purpose == "learn", self.recipe
        coded = self.examples.coded(split, self.tokenizer, self.answers, recipe.model.memory, learn)
        return to_learn(*coded, recipe.train.batch_size, recipe.seed) if learn else to_score(*coded)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """As of classes; a question whose answer training lacks counts as wrong, and not in the loss."""
        found = super().metrics(model, split, progress)
        unknown = self.examples.unanswerable(split, self.answers)
        return {**with_unknown(found, found["count"], unknown), "unknown_answers": unknown} if unknown else found

    def objective(self, model: Any, batch: LabelledBatch, state: State) -> Iterator[Loss]:
        """−log p(answer), with the recipe's class weights."""
        return class_losses(model, batch, self.weights if model.training else None)

    def digest(self, split: str) -> str:
        """A digest of stories and answers."""
        return self.examples.digest(split)

    def summary(self) -> list[str]:
        """Lines on stories, answers and vocabulary."""
        return self.examples.summary(self.classes, self.tokenizer)

    def asked_lines(self, verb: str) -> str:
        """What a story with a question looks like."""
        return "Numbered lines, 1 begins a story, questions end in a question mark: `1 Mary ran.`, `2 Who ran?`"

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """answer<TAB>probability of each question; the record has all probabilities and what each hop reads."""
        return story_predictions(model, self.examples, self.tokenizer, self.examples.asked(lines))

    exported = staticmethod(memory_forms)

    def stand_in(self, runtime: Runtime) -> MemoryStandIn:
        """The same in another runtime."""
        return MemoryStandIn(self.answers, self.recipe.model.memory, runtime)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Baselines that do not read the story in order, or not at all."""
        return story_rivals(self.examples, self.answers, split, quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Confusion, reliability, and what each hop reads."""
        split = self.splits()[-1]
        yield from figure_pictures(model, measured_classes(model, self.batches(split, model, "score")), out, self.unit)
        shown = self.examples.shown(split, text, SHOWN)
        yield from story_pictures(model, self.examples, self.tokenizer, shown, out)

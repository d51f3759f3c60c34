"""Speech: recordings to text, p(labels | frames) with labels whose times are unknown (CTC)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data.spoken_batches import SpokenBatch, SpokenBatches
from everstep.learn.objective import Loss
from everstep.learn.settings import FitSettings
from everstep.look.passage import Passage
from everstep.networks.alphabet import Alphabet
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.recogniser import Recogniser, RecogniserSection, recogniser_losses
from everstep.networks.recogniser_forms import RecogniserStandIn, recogniser_forms
from everstep.networks.scoring import Score
from everstep.networks.stand_ins import Runtime
from everstep.runs.named_files import split_names
from everstep.runs.recipe import Recipe
from everstep.runs.recognition import Recognition, RecognitionSection
from everstep.runs.spoken_data import Recordings, SpokenSection
from everstep.runs.spoken_pictures import shown_recordings, spoken_passage, spoken_pictures
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.runs.transcriptions import MEANING, Heard, figures, rivals_of, text_scores, transcriptions
from everstep.state import State
from everstep.storage.files import replace_file


class SpeechRecipe(Recipe):
    """The recipe: recordings with texts, a recogniser, −log p of the texts."""

    data: SpokenSection = SpokenSection()
    model: RecogniserSection = RecogniserSection()
    train: FitSettings = FitSettings(max_epochs=30)
    decode: RecognitionSection = RecognitionSection()


class Speech(Task[SpeechRecipe]):
    """Writes down what is said in recordings, with the times of each label."""

    Recipe = SpeechRecipe
    files = ("numbers.json", "alphabet.json")
    unit = "label"
    scores = frozenset({"sentence_accuracy"})
    shown = ("wer", "cer", "sentence_accuracy", "loss")
    meaning = MEANING
    understands = frozenset({"n_best"})
    reads = {"predict": "recordings.txt", "score": "recordings.tsv"}
    names_files = True
    scaling: NumberScaling
    alphabet: Alphabet

    @cached_property
    def recordings(self) -> Recordings:
        """The files of the recipe."""
        return Recordings(self.recipe.data, self.recipe.seed)

    def prepare(self) -> None:
        """Find the labels of the training texts, and fit the scaling to the training recordings."""
        self.scaling, self.alphabet = self.recordings.scaling(), self.recordings.alphabet()

    def ready(self, say: Say) -> None:
        """Report the recordings of every split, and what is left out."""
        for line in [*self.summary(), *self.recordings.told(self.alphabet)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `numbers.json` and `alphabet.json`."""
        replace_file(run / "numbers.json", self.scaling.to_bytes())
        replace_file(run / "alphabet.json", self.alphabet.to_bytes())

    def open(self, run: Path) -> None:
        """Read the files of `save`."""
        self.scaling, self.alphabet = NumberScaling.load(run / "numbers.json"), Alphabet.load(run / "alphabet.json")

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return split_names(self.recipe.data)

    def model(self) -> Recogniser:
        """A new model: cells, and a softmax over labels and the blank."""
        data = self.recipe.data
        return Recogniser(data.bands * data.stack, len(self.alphabet.symbols), self.recipe.model, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> SpokenBatches:
        """Batches of recordings of near-equal length; to learn from, with about as many steps each."""
        size = self.recipe.train.batch_size if purpose == "learn" else None
        return self.recordings.batches(split, self.scaling, self.alphabet, size)

    def objective(self, model: Any, batch: SpokenBatch, state: State) -> Iterator[Loss]:
        """−log p of the text of each recording."""
        return recogniser_losses(model, batch)

    @property
    def given(self) -> Heard:
        """What the model needs besides its weights."""
        return Heard(self.recipe.data, self.scaling, self.alphabet)

    @cached_property
    def search(self) -> Recognition:
        """The search of the recipe."""
        return Recognition(self.recipe.decode, self.alphabet)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Nats a label, and the error rates of words and characters of the texts that are found."""
        return figures(model, self.recordings, split, self.given, self.search, progress)

    def validate(self, model: Any) -> dict[str, float]:
        """Loss and error rates of the split "valid", without a search."""
        found = figures(model, self.recordings, "valid", self.given, Recognition(RecognitionSection(), self.alphabet))
        return {name: found[name] for name in ("loss", "wer", "cer", "sentence_accuracy")}

    def digest(self, split: str) -> str:
        """A digest of features and texts."""
        return self.recordings.digest(split)

    def summary(self) -> list[str]:
        """The recordings and the labels, for the card."""
        data, symbols = self.recipe.data, self.alphabet.symbols
        told = " ".join(map(repr, symbols[:40])) + (" …" if len(symbols) > 40 else "")
        step = (
            f"a step is {data.step_seconds * 1000:g} ms of {data.bands} bands at {data.sample_rate:,} samples a second"
        )
        return [f"recordings: {data.train}; {step}", f"labels: {len(symbols):,} {data.unit}: {told}"]

    def asked_lines(self, verb: str) -> str:
        """Paths."""
        form = "One recording per line: its path, or data:audio/wav;base64,…"
        return form if verb == "predict" else f"{form}; then a tab and its text"

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """The text of each recording; the record has log p and the times of its labels."""
        return transcriptions(model, lines, self.given, self.search, asked.n_best)

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of the text after the tab, given the recording before it."""
        return text_scores(model, lines, self.given, first_line)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Error rates of the most frequent text, and of that of the nearest recording."""
        return rivals_of(self.recordings, split, self.given, quick)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """The recording that the user's text names, or the longest held-out one."""
        (one,) = shown_recordings(self.recordings, text, 1)
        return spoken_passage(model, one, self.given, characters)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Recordings, and the probabilities of labels over time."""
        yield from spoken_pictures(model, self.recordings, text, self.given, self.search, out)

    exported = staticmethod(recogniser_forms)

    def stand_in(self, runtime: Runtime) -> Recogniser:
        """The same in another runtime."""
        return RecogniserStandIn(runtime)

"""Tagging: a tag for each word of a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data import Batches
from everstep.data.tagged_batches import TaggedBatch, TaggedBatches
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.forms import Exported
from everstep.networks.learned_tags import Learned
from everstep.networks.model_forms import tagger_forms
from everstep.networks.pretrained_vectors import Vectors, read_vectors, saved_vectors, vectors_of
from everstep.networks.sequence_tagger import SequenceTagger, TagDecodeSection, TaggerSection, tag_losses
from everstep.networks.stand_ins import Runtime, TaggerStandIn
from everstep.networks.tag_decoding import SCORED_WORDS, frequent_tags_rival, tag_figures
from everstep.networks.tag_pictures import tag_passage, tag_pictures
from everstep.networks.word_reader import WordReader
from everstep.runs.recipe import Recipe
from everstep.runs.tag_predictions import tag_predictions
from everstep.runs.tagged_data import TaggedSection, TaggedTexts, asked_form
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.state import State
from everstep.storage.files import replace_file


class TaggingRecipe(Recipe):
    """The recipe: tagged sentences, a tagger, −log p of the tags."""

    data: TaggedSection = TaggedSection()
    model: TaggerSection = TaggerSection()
    decode: TagDecodeSection = TagDecodeSection()


class Tagging(Task[TaggingRecipe]):
    """Predicts a tag for each word of a sentence: parts of speech, names, chunks."""

    Recipe = TaggingRecipe
    files = ("vocabulary.json", "vectors.safetensors")
    unit = "word"
    scores = frozenset({"accuracy", "f1", "precision", "recall"})
    shown = ("f1", "accuracy", "loss")
    understands = frozenset({"probabilities", "n_best", "format"})
    reads = {"predict": "words.conll"}
    meaning = {
        "loss": "mean of -ln p(tags) a word",
        "accuracy": "share of words whose tag is right",
        "known_accuracy": "of words that training saw",
        "unknown_accuracy": "of words that training never saw",
        "unseen_tags": "tags that training never saw",
        "f1": "of spans, as conlleval counts",
        "strict_f1": "of spans that are written as the scheme writes them",
    }
    learned: Learned
    vectors: Vectors | None

    def prepare(self) -> None:
        """Find the vocabulary and the tags of the training sentences, and read pretrained vectors, if any."""
        model = self.recipe.model
        self.vectors = None if model.vectors is None else read_vectors(model.vectors, model.embedding_size)
        more = () if self.vectors is None else self.vectors.words
        self.learned = self.texts.learned(model.affixes, more)

    def ready(self, say: Say) -> None:
        """Report every split, skipped entries, possible mistakes, and how many words have vectors."""
        for line in [*self.summary(), *self.texts.told(self.learned)]:
            say(line)
        self.learned.check_spans(self.recipe.decode.outside_penalty, self.recipe.train.select)
        if self.vectors is not None:
            say(self.vectors.coverage(self.learned.words))

    def save(self, run: Path) -> None:
        """Write `vocabulary.json`, and the pretrained vectors."""
        replace_file(run / "vocabulary.json", self.learned.to_bytes())
        replace_file(run / "vectors.safetensors", saved_vectors(self.vectors))

    def open(self, run: Path) -> None:
        """Read the files of `save`."""
        self.learned = Learned.load(run / "vocabulary.json")
        self.vectors = vectors_of(run / "vectors.safetensors", self.learned.words.more)

    @cached_property
    def texts(self) -> TaggedTexts:
        """The files of the recipe."""
        return TaggedTexts(self.recipe.data, self.recipe.seed)

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.texts.splits()

    def model(self) -> SequenceTagger:
        """A new model: word reader, cells, a head for each tag column."""
        section, words, columns = self.recipe.model, self.learned.words, self.learned.columns
        begun = None if self.vectors is None else self.vectors.rows(words)
        reader = WordReader(section, *words.sizes(), [0, *words.read_counts.values()], begun)
        masks = [column.allowed() for column in columns]
        biases = [column.bias(self.recipe.decode.outside_penalty) for column in columns]
        return SequenceTagger(section, reader, [len(column.tags) for column in columns], masks, self.code.find, biases)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[TaggedBatch]:
        """Batches of sentences of near-equal length; to learn from, with about as many words each."""
        coded = self.learned.coded(self.texts.examples(split).sentences)
        if purpose == "learn":
            return TaggedBatches(coded, self.recipe.train.batch_size, seed=self.recipe.seed, even=True)
        return TaggedBatches(coded, 256, shuffle=False, max_tokens=SCORED_WORDS)

    def objective(self, model: Any, batch: TaggedBatch, state: State) -> Iterator[Loss]:
        """−log p(tags), summed over columns."""
        return tag_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Accuracy, also of known and unknown words; for spans, precision, recall and F1, also of each type."""
        sentences = self.texts.examples(split).sentences
        coded = self.learned.coded(sentences)
        return tag_figures(model, sentences, coded, self.learned.columns, self.learned.words, progress)

    def validate(self, model: Any) -> dict[str, float]:
        """The loss, accuracy and F1 of the split "valid"."""
        found = self.metrics(model, "valid")
        return {name: found[name] for name in ("loss", "accuracy", "f1") if name in found}

    def digest(self, split: str) -> str:
        """A digest of words, features and tags."""
        return self.texts.examples(split).digest()

    def summary(self) -> list[str]:
        """Lines on sentences, tags and vocabulary."""
        return [f"sentences: {self.recipe.data.train}", *self.learned.summary()]

    def asked_lines(self, verb: str) -> str:
        """Words in the format of training."""
        return asked_form(self.learned.format)

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """The lines, with tags appended to each word."""
        return tag_predictions(model, lines, self.learned, self.recipe.data, asked)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """The baseline of the most frequent tag of each word."""
        train, others = self.texts.examples("train").sentences, self.texts.examples(split).sentences
        return frequent_tags_rival(train, others, self.learned.columns, self.learned.words)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """The user's text, or a held-out sentence, as the cells read it."""
        return tag_passage(model, self.learned, self.texts.passage(text, self.learned, characters))

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Confusion of tags, coloured spans, relevance of characters."""
        held_out = self.texts.examples(self.splits()[-1]).sentences
        own = None if text is None else self.texts.passage(text, self.learned, len(text))
        yield from tag_pictures(model, self.learned, held_out, own, out)

    def exported(self, model: Any) -> Exported:
        """Words to the scores of their tags."""
        return tagger_forms(model)

    def stand_in(self, runtime: Runtime) -> SequenceTagger:
        """The same in another runtime."""
        columns, crf = self.learned.columns, self.recipe.model.head == "crf"
        biases = [column.bias(self.recipe.decode.outside_penalty) for column in columns]
        return TaggerStandIn([len(c.tags) for c in columns], [c.allowed() for c in columns], crf, runtime, biases)

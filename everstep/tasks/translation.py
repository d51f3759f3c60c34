"""Translation: from one sequence to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data import Batches
from everstep.data.pair_batches import PairBatch, PairBatches
from everstep.data.text.moses import REMEDY
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.scoring import Score
from everstep.networks.translating import SCORED, TranslationSearch
from everstep.runs.pair_data import FILES, PairTexts, Sides
from everstep.runs.pair_section import PairSection
from everstep.runs.predictions import by_block
from everstep.runs.recipe import Recipe
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.runs.translation_pictures import source_passage, translation_pictures
from everstep.runs.translations import MEANING, asked_search, figures, pair_scores, translations
from everstep.sections import Probability, Section
from everstep.state import State


class TeacherForcing(Section):
    """The loss: −log p of each target token given the source and the true tokens before it."""

    label_smoothing: Probability = 0.1
    """share of the target probability that is spread over all tokens (Szegedy 2016)"""


class TranslationRecipe(Recipe):
    """Texts with their translations, an encoder and a decoder, likelihood, and a search."""

    data: PairSection = PairSection()
    model: EncoderDecoderSection = EncoderDecoderSection()
    objective: TeacherForcing = TeacherForcing()
    decode: TranslationSearch = TranslationSearch()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """A tied embedding with two vocabularies, and search options without word tokens or without attention."""
        yield from super().disagreements()
        if self.model.tied == "all" and self.data.vocabulary != "joint":
            yield (
                "model.tied",
                "expected target or none, or data.vocabulary joint: two vocabularies have two embeddings",
            )
        if self.decode.replace_unknown and (self.data.unit != "words" or self.model.context != "attention"):
            yield "decode.replace_unknown", "expected false, or data.unit words and model.context attention beside it"
        if self.decode.n_best > 1:
            yield "decode.n_best", "expected 1: `everstep predict RUN --n-best N` asks for more translations of a line"
        if self.decode.coverage_penalty and self.model.context != "attention":
            yield "decode.coverage_penalty", f"expected 0 where model.context is {self.model.context}"


class Translation(Task[TranslationRecipe]):
    """Translate lines from one language to another, or any sequences."""

    Recipe = TranslationRecipe
    extras = ("sacrebleu",)
    remedy = REMEDY
    files = FILES
    scores = frozenset({"bleu", "chrf"})
    shown = ("bleu", "chrf", "nats_per_token", "perplexity")
    meaning = MEANING
    understands = frozenset({"n_best"})
    sides: Sides

    def prepare(self) -> None:
        """Build the vocabularies from the training pairs."""
        self.sides = self.texts.languages()

    def ready(self, say: Say) -> None:
        """Report the size of every split, pairs left out and suspicious input."""
        for line in [*self.summary(), *self.texts.told(self.sides)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.target.json`."""
        self.sides.save(run)

    def open(self, run: Path) -> None:
        """Read what `save` wrote."""
        self.sides = self.texts.opened(run)

    @cached_property
    def texts(self) -> PairTexts:
        """The files of the recipe."""
        return PairTexts(self.recipe.data, self.recipe.seed)

    def splits(self) -> tuple[str, ...]:
        """The splits of the recipe, among train, valid and test."""
        return self.texts.splits()

    def model(self) -> EncoderDecoder:
        """A new `EncoderDecoder`."""
        source, target = (side.tokenizer.vocab_size for side in self.sides)
        smoothing = self.recipe.objective.label_smoothing
        return EncoderDecoder(self.recipe.model, source, target, self.code.find, smoothing)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[PairBatch]:
        """Batches of pairs of similar lengths."""
        coded = self.texts.coded(split, self.sides, learn=purpose == "learn")
        pairs = coded.source, coded.target, self.sides.target.end
        recipe = self.recipe
        if purpose == "learn":
            return PairBatches(*pairs, recipe.train.batch_size, seed=recipe.seed, max_tokens=recipe.data.batch_tokens)
        return PairBatches(*pairs, 256, shuffle=False, max_tokens=SCORED)

    def objective(self, model: Any, batch: PairBatch, state: State) -> Iterator[Loss]:
        """−log p(target | source) with teacher forcing, in nats."""
        yield Loss(*model.losses(batch))

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """BLEU and chrF of the translations, and the likelihood of the references."""
        likelihood = self.mean_loss(model, self.batches(split, model, "score"))
        return figures(model, self.texts, split, self.sides, self.recipe.decode, likelihood, progress)

    def digest(self, split: str) -> str:
        """The SHA-256 of the texts of a split."""
        return self.texts.digest(split)

    def summary(self) -> list[str]:
        """The pairs, the languages, the vocabularies."""
        return self.texts.summary(self.sides)

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """The translation of each line. The record has the alignment, the scores and the n best."""
        how = asked_search(self.recipe.decode, asked.n_best)
        return by_block(lines, lambda block: translations(model, block, self.sides, how))

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p(target | source) of lines `source<TAB>target`, in nats."""
        return pair_scores(model, lines, self.sides, first_line)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """A held-out source, or the given text, as the encoder reads it."""
        return source_passage(model, self.sides, self.texts.passage(text, characters)[0], self.recipe.data.unit)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Attention maps, and accuracy by length."""
        yield from translation_pictures(model, self.texts, self.sides, self.recipe.decode, out, text)

"""Translation: from one sequence to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from everstep.data import Batches
from everstep.data.pair_batches import PairBatch, PairBatches
from everstep.data.text.moses import REMEDY
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.encoder_decoder import EncoderDecoder
from everstep.networks.scoring import Score
from everstep.networks.softmax_by_name import tell_counts
from everstep.networks.translating import SCORED
from everstep.networks.translator_ensemble import TranslatorEnsemble
from everstep.networks.translator_forms import TranslatorStandIn, translator_forms
from everstep.runs.directions import Direction
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_tokens import FILES, LANGUAGES, Sides
from everstep.runs.predictions import in_blocks
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.runs.translation_pictures import source_passage, translation_pictures
from everstep.runs.translation_recipe import TranslationRecipe
from everstep.runs.translations import MEANING, asked_search, figures, pair_scores, together, translations
from everstep.runs.wished_lines import wishes
from everstep.state import State


class Translation(Task[TranslationRecipe]):
    """Translate lines from one language to another, or any sequences."""

    Recipe = TranslationRecipe
    extras = ("sacrebleu",)
    remedy = REMEDY
    files = (*FILES, LANGUAGES)
    scores = frozenset({"bleu", "chrf"})
    shown = ("bleu", "chrf", "nats_per_token", "perplexity")
    meaning = MEANING
    understands = frozenset({"n_best", "format"})
    reads = {"score": "pairs.tsv"}
    sides: Sides

    def prepare(self) -> None:
        """Build the vocabularies from the training pairs."""
        self.sides = self.texts.languages()

    def ready(self, say: Say) -> None:
        """Note the tokens of each language; report the size of every split, pairs left out and suspicious input."""
        self.sides = self.texts.with_own(self.sides)
        for line in [*self.summary(), *self.texts.told(self.sides)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write the tokenizers and `languages.json`."""
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
        smoothing, tags = self.recipe.objective.label_smoothing, len(self.recipe.data.targets)
        return EncoderDecoder(self.recipe.model, source, target, self.code.find, smoothing, tags)

    def embedded(self, model: Any) -> tuple[Tensor, Sequence[str]]:
        """The source embedding, with the text of each token."""
        return model.source_embedding.weight, self.sides.source.tokenizer.symbols

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[PairBatch]:
        """Batches of pairs of similar lengths; to learn from, with about as many tokens each."""
        if purpose != "learn":
            return self._scored(split)
        coded, recipe = self.texts.coded(split, self.sides, learn=True), self.recipe
        size, most = recipe.train.batch_size, recipe.data.batch_tokens
        tell_counts(model.head, coded.target.parts())
        even = most is None
        return PairBatches(*coded[:2], self.sides.target.end, size, seed=recipe.seed, max_tokens=most, even=even)

    def _scored(self, split: str, direction: Direction | None = None) -> PairBatches:
        coded = self.texts.coded(split, self.sides, direction=direction)
        return PairBatches(*coded[:2], self.sides.target.end, 256, shuffle=False, max_tokens=SCORED)

    def objective(self, model: Any, batch: PairBatch, state: State) -> Iterator[Loss]:
        """−log p(target | source) with teacher forcing, in nats."""
        yield Loss(*model.losses(batch))

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """BLEU and chrF of the translations, and the likelihood of the references, in each direction."""
        each = {}
        for direction in self.texts.directions(split):
            likelihood = self.mean_loss(model, self._scored(split, direction))
            asked = self.texts, split, direction, self.sides, self.recipe.decode, likelihood, progress
            each[str(direction)] = figures(model, *asked)
        return together(each)

    def asked_lines(self, verb: str) -> str:
        """Sentences, or pairs to score."""
        return "Per line a sentence, a tab, and its translation." if verb == "score" else "One sentence per line."

    def loss_on(self, model: Any, split: str) -> float:
        """Nats per token of the references of all directions; nothing is translated."""
        return self.mean_loss(model, self._scored(split))[0]

    def digest(self, split: str) -> str:
        """The SHA-256 of the texts of a split."""
        return self.texts.digest(split)

    def numbered(self) -> dict[str, Any]:
        """The target languages, each of which has a tag."""
        return {"target languages": list(self.recipe.data.targets)}

    def summary(self) -> list[str]:
        """The pairs, the languages, the vocabularies."""
        return self.texts.summary(self.sides)

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """The translation of each line. The record has the alignment, the scores and the n best."""
        how = asked_search(self.recipe.decode, asked.n_best)
        sides = self.texts.asked(self.sides, how.to, how.source)
        return in_blocks(wishes(lines, asked.format), lambda block: translations(model, block, sides, how))

    def together(self, models: Sequence[Any]) -> TranslatorEnsemble:
        """A model whose probabilities are the mean of those of the models."""
        return TranslatorEnsemble(models)

    exported, stand_in = staticmethod(translator_forms), staticmethod(TranslatorStandIn)

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p(target | source) of lines `source<TAB>target`, in nats."""
        how = self.recipe.decode
        return pair_scores(model, lines, self.texts.asked(self.sides, how.to, how.source), first_line)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """A held-out source, or the given text, as the encoder reads it."""
        how = self.recipe.decode
        direction = self.texts.drawn(how.source, how.to, held_out=text is None)
        source, sides = self.texts.passage(text, characters, direction), self.texts.toward(self.sides, direction)
        return source_passage(model, sides, source, self.recipe.data.unit)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Attention maps, and accuracy by length."""
        yield from translation_pictures(model, self.texts, self.sides, self.recipe.decode, out, text)

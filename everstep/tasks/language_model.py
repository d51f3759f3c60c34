"""The language model: p(x_t | x_<t) of a text, by an embedding, a stack of cells and a softmax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data import Batches, Corpus, Tokenizer
from everstep.data.batches import TokenBatch
from everstep.data.text.decoding import as_read
from everstep.data.text.perplexity import MEANING, text_measures
from everstep.data.text.unknowns import unknown_measures
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.forms import Exported
from everstep.networks.likelihood import LikelihoodSection, likelihood
from everstep.networks.model_forms import token_forms
from everstep.networks.scoring import Score, score_lines
from everstep.networks.stand_ins import Runtime, TokenStandIn
from everstep.networks.streaming import token_decoder
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.networks.token_passage import token_passage
from everstep.runs.recipe import Recipe
from everstep.runs.task import Progress, Purpose, Say, Speller, Task
from everstep.runs.text_data import UNITS, Texts, TextSection, exact_batches, quick_batches, training_batches
from everstep.state import State
from everstep.storage.files import replace_file


class LanguageModelRecipe(Recipe):
    """The recipe: a text, a token model, likelihood."""

    data: TextSection = TextSection()
    model: TokenModelSection = TokenModelSection()
    objective: LikelihoodSection = LikelihoodSection()
    decode: SamplingSection = SamplingSection()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Incompatible sizes, and k2 with whole lines."""
        yield from super().disagreements()
        model = self.model
        if model.residual and model.layers == 1 and model.embedding_size != model.hidden_sizes[0]:
            sizes = [model.embedding_size, *model.hidden_sizes]
            yield "model.residual", f"expected embedding_size = hidden_size, or more than one layer; got {sizes}"
        if self.data.sequence == "lines" and self.objective.k2 is not None:
            yield "objective.k2", "expected null where data.sequence is lines: gradients go back to each line's start"


class LanguageModel(Task[LanguageModelRecipe]):
    """Predicts the next token: trains on text, scores it and generates it."""

    Recipe = LanguageModelRecipe
    files = ("tokenizer.json",)
    meaning = MEANING
    shown = ("nats_per_token", "perplexity", "bits_per_char")
    tokenizer: Tokenizer

    def prepare(self) -> None:
        """Find the vocabulary of the training text."""
        self.tokenizer = self.texts.tokenizer()

    def ready(self, say: Say) -> None:
        """Tokenise every split, and report it."""
        for line in [*self.summary(), *(f"{split}: {self.corpus(split).summary()}" for split in self.splits())]:
            say(line)
        if self.texts.config.unit == "chars" and self.texts.config.unk is None and self.tokenizer.unk_id is not None:
            rare = self.corpus("train").unknown > 0
            why = "data.min_count or data.max_size cuts" if rare else "data.train lacks"
            say(f"note: there are characters that {why}; they are read as <unk>")
        if "valid" in self.splits() and self.digest("valid") == self.digest("train"):
            say("warning: data.valid is the same text as data.train; its score will say nothing about new text")

    def save(self, run: Path) -> None:
        """`tokenizer.json`."""
        replace_file(run / "tokenizer.json", self.tokenizer.to_bytes())

    def open(self, run: Path) -> None:
        """`tokenizer.json`."""
        self.tokenizer = Tokenizer.load(run / "tokenizer.json")

    @cached_property
    def texts(self) -> Texts:
        """The texts of the recipe."""
        return Texts(self.recipe.data)

    def corpus(self, split: str) -> Corpus:
        """The tokens of a split."""
        if split not in self._corpora:
            self._corpora[split] = self.texts.corpus(split, self.tokenizer)
        return self._corpora[split]

    @cached_property
    def _corpora(self) -> dict[str, Corpus]:
        return {}

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.texts.splits

    def model(self) -> TokenModel:
        """A new model: embedding, cells, softmax."""
        recipe = self.recipe
        return TokenModel(self.tokenizer.vocab_size, recipe.model, self.code.find, recipe.objective.label_smoothing)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[TokenBatch]:
        """Lanes of the text with carried state, or its lines."""
        data, goal = self.recipe.data, self.recipe.objective
        corpus = self.corpus(split)
        if purpose == "learn":
            rows, seed = self.recipe.train.batch_size, self.recipe.seed
            return training_batches(data, corpus, self.tokenizer, rows, goal.k1, goal.k2, seed)
        return (quick_batches if purpose == "validate" else exact_batches)(data, corpus, self.tokenizer)

    def objective(self, model: Any, batch: TokenBatch, state: State) -> Iterator[Loss]:
        """−log p of each next token, under truncated BPTT."""
        goal = self.recipe.objective
        yield from likelihood(goal.k2, goal.activation_penalty, goal.change_penalty)(model, batch, state)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Nats, bits, perplexity and unknown tokens of a split, read once from first to last token."""
        corpus = self.corpus(split)
        nats, tokens = self.mean_loss(model, exact_batches(self.recipe.data, corpus, self.tokenizer), progress)
        unknown = unknown_measures(corpus.unknown, tokens, self.tokenizer, self.texts.read(split))
        return {
            "tokens": tokens,
            "loss": nats,
            **unknown,
            **text_measures(nats, tokens, corpus.chars, corpus.bytes, corpus.words),
        }

    def digest(self, split: str) -> str:
        """A digest of the tokens."""
        return self.corpus(split).digest

    def summary(self) -> list[str]:
        """Lines on the text and its vocabulary."""
        data = self.recipe.data
        named = data.train if isinstance(data.train, str) else ", ".join(data.train)
        empty = [f"left out: {empty}"] if (empty := self.texts.left_out()) else []
        return [f"text: {named}", *empty, f"vocabulary: {self.tokenizer.vocab_size:,} {data.unit}"]

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line from the initial state: Σ_t log p(x_t | x_<t), with its end if that is a token."""
        return score_lines(model, self.tokenizer, lines, first_line)

    def decoder(self, model: Any, given: str) -> Decoder:
        """A decoder that continues the text `given`."""
        return token_decoder(model, self.tokenizer, given)

    def speller(self) -> Speller:
        """An incremental converter from tokens to text."""
        return self.tokenizer.speller()

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """Whole lines of the user's text, or else of the held-out text, with the surprise of each piece."""
        ids = self.tokenizer.encode(as_read(self.texts.passage(text, characters)), line_end=False).tolist()
        return token_passage(model, self.tokenizer, ids, UNITS[self.recipe.data.unit])

    def exported(self, model: Any) -> Exported:
        """Tokens to log p of the next ones."""
        return token_forms(model)

    def stand_in(self, runtime: Runtime) -> TokenModel:
        """The same in another runtime."""
        return TokenStandIn(self.tokenizer.vocab_size, runtime)

    @classmethod
    def upgraded(cls, raw: dict[str, Any], version: int) -> dict[str, Any]:
        """Convert format 1, which had the keys of the objective in `train`."""
        train = dict(raw.get("train") or {})
        moved = {key: train.pop(key) for key in LikelihoodSection.model_fields if key in train}
        return {**raw, "train": train, "objective": {**moved, **(raw.get("objective") or {})}}

"""The language model: p(x_t | x_<t) of a text, by an embedding, a stack of cells and a softmax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from everstep.data import Batches
from everstep.data.batches import TokenBatch
from everstep.data.text.decoding import as_read
from everstep.data.text.perplexity import MEANING
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.forms import Exported
from everstep.networks.likelihood import LikelihoodSection, likelihood
from everstep.networks.model_forms import token_forms
from everstep.networks.scoring import Score, score_lines, score_rows, scored_in_order
from everstep.networks.self_normalisation import LOG_Z, log_z_measures
from everstep.networks.softmax_by_name import smoothing_problem, tell_counts
from everstep.networks.stand_ins import Runtime, TokenStandIn
from everstep.networks.streaming import token_decoder
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.networks.token_passage import token_passage
from everstep.runs.adapted import adapted_measures
from everstep.runs.capabilities import Adaptation
from everstep.runs.counted_rivals import counted_rivals
from everstep.runs.task import Progress, Purpose
from everstep.runs.text_data import UNITS, exact_batches, quick_batches, training_batches
from everstep.runs.text_task import TextRecipe, TextTask
from everstep.state import State


class LanguageModelRecipe(TextRecipe):
    """The recipe: a text, a token model, likelihood."""

    model: TokenModelSection = TokenModelSection()
    objective: LikelihoodSection = LikelihoodSection()
    decode: SamplingSection = SamplingSection()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Incompatible sizes, and k2 with whole lines."""
        yield from super().disagreements()
        yield from smoothing_problem(self.model, self.objective.label_smoothing)
        model = self.model
        if model.residual and model.layers == 1 and model.embedding_size != model.hidden_sizes[0]:
            sizes = [model.embedding_size, *model.hidden_sizes]
            yield "model.residual", f"expected embedding_size = hidden_size, or more than one layer; got {sizes}"
        if self.data.sequence == "lines" and self.objective.k2 is not None:
            yield "objective.k2", "expected null where data.sequence is lines: gradients go back to each line's start"
        if self.data.sequence == "lines" and self.objective.random_k1:
            yield "objective.random_k1", "expected false where data.sequence is lines: a step reads whole lines"


class LanguageModel(TextTask[LanguageModelRecipe]):
    """Predicts the next token: trains on text, scores it and generates it."""

    Recipe = LanguageModelRecipe
    meaning = MEANING | LOG_Z

    def model(self) -> TokenModel:
        """A new model: embedding, cells, softmax."""
        recipe, tokenizer = self.recipe, self.tokenizer
        smoothing = recipe.objective.label_smoothing
        return TokenModel(tokenizer.vocab_size, recipe.model, self.code.find, smoothing, tokenizer.eos_id)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[TokenBatch]:
        """Lanes of the text with carried state, or its lines."""
        data, goal = self.recipe.data, self.recipe.objective
        corpus = self.corpus(split)
        if purpose == "learn":
            rows, seed = self.recipe.train.batch_size, self.recipe.seed
            tell_counts(model.head, [corpus.tokens])
            return training_batches(data, corpus, self.tokenizer, rows, goal.k1, goal.k2, seed, goal.random_k1)
        return (quick_batches if purpose == "validate" else exact_batches)(data, corpus, self.tokenizer)

    def objective(self, model: Any, batch: TokenBatch, state: State) -> Iterator[Loss]:
        """−log p of each next token, under truncated BPTT."""
        goal = self.recipe.objective
        yield from likelihood(goal.k2, goal.activation_penalty, goal.change_penalty)(model, batch, state)

    def adapted(
        self, model: Any, split: str, how: Adaptation, progress: Progress = lambda done, total: None
    ) -> dict[str, Any]:
        """The measures by a continuous cache or dynamic evaluation, with settings chosen on "valid"."""
        return adapted_measures(self, model, split, how, progress)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Nats, bits, perplexity and unknown tokens of a split, and how far `nce` is from normalised."""
        found = super().metrics(model, split, progress)
        batches = exact_batches(self.recipe.data, self.corpus(split), self.tokenizer)
        return {**found, **log_z_measures(model, batches)}

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Kneser-Ney n-grams of the same tokens; none if `quick`, since a training text may be large."""
        return [] if quick else counted_rivals(self, split)

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line from the initial state: Σ_t log p(x_t | x_<t), with its end if that is a token."""
        return score_lines(model, self.tokenizer, lines, first_line)

    def score_in_order(self, model: Any, lines: Sequence[str]) -> list[Score]:
        """As `score`; the state is carried over lines where the text is one stream."""
        if self.recipe.data.sequence != "stream":
            return self.score(model, lines)
        return scored_in_order(partial(score_rows, model), self.tokenizer, lines)

    def decoder(self, model: Any, given: str) -> Decoder:
        """A decoder that continues the text `given`."""
        return token_decoder(model, self.tokenizer, given)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """Whole lines of the user's text, or else of the held-out text, with the surprise of each piece."""
        ids = self.tokenizer.encode(as_read(self.texts.passage(text, characters)), line_end=False).tolist()
        return token_passage(model, self.tokenizer, ids, UNITS[self.recipe.data.unit])

    def embedded(self, model: Any) -> tuple[Tensor, Sequence[str]]:
        """The embedding, with the text of each token."""
        return model.embedding.weight, self.tokenizer.symbols

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

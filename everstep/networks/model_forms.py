"""The forms of token models, classifiers and taggers."""

from __future__ import annotations

from torch import Tensor

from everstep.cell import Cell
from everstep.data.tagged_batches import TaggedBatch
from everstep.heads import CRF, Categorical
from everstep.networks.documents import Hierarchy
from everstep.networks.forms import LENGTHS, Exported, Form, Input, Named
from everstep.networks.pairs import joined
from everstep.networks.sequence_classifier import SequenceClassifier
from everstep.networks.sequence_tagger import SequenceTagger
from everstep.networks.token_model import TokenModel
from everstep.state import State

TRANSITIONS = ("transitions", "start", "end")
"""The parameters of a CRF besides the scores of its tags."""


class _Next(Cell):
    """A cell from an embedded token to log p of the next token, in nats."""

    def __init__(self, model: TokenModel):
        super().__init__(model.body.input_size, model.head.classes)
        self.body, self.head = model.body, model.head

    def initial_state(self, batch: int, like: Tensor) -> State:
        return self.body.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.body.step(x, state)
        return self.head.predict(y), state


def token_forms(model: TokenModel) -> Exported:
    """The forms of a token model: `tokens` to `log_p` of the next tokens, in nats, with the state.

    Where the softmax reads the last words too, their numbers + 1 are the last leaf of the state.
    """

    def step(given: Named, state: State) -> tuple[Named, State]:
        ys, state = model(given["tokens"][:, None], state)
        return {"log_p": model.head.predict(ys[:, 0])}, state

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        ys, state = model(given["tokens"], state, lengths=given["lengths"])
        return {"log_p": model.head.predict(ys)}, state

    words = model.embedding.num_embeddings
    one, whole = {"tokens": Input(("batch",), words)}, {"tokens": Input(("batch", "time"), words), "lengths": LENGTHS}
    cell = None if model.recent else _Next(model)
    return Exported(
        Form(model, step, one, model.initial_state, cell, None if cell is None else model.embedding.weight),
        Form(model, sequence, whole, model.initial_state),
    )


def classifier_forms(model: SequenceClassifier) -> Exported:
    """The form of a classifier: `tokens` and `lengths` of texts to `log_p` of each answer, in nats.

    A hierarchical reader has the inputs that `documents.laid_out` gives, and a reader of pairs those of
    `pairs.laid_out`; both with `tokens` and `token_lengths` if the model counts n-grams.
    """
    whole = "it answers whole texts, and has no state between steps"
    words = model.embedding.num_embeddings
    inputs = {"tokens": Input(("batch", "time"), words), "lengths": LENGTHS}

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        return {"log_p": model(given["tokens"], given["lengths"])}, state

    if model.separator is not None:
        return Exported(whole, _paired(model, inputs))
    if isinstance(model.body, Hierarchy):
        return Exported(whole, _hierarchical(model, model.body, inputs))
    return Exported(whole, Form(model, sequence, inputs))


def _paired(model: SequenceClassifier, flat: dict[str, Input]) -> Form:
    body = model.body

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        both = [body(model.embedding(given[name]), lengths=given[f"{name}_lengths"])[0] for name in ("first", "second")]
        return {"log_p": _answered(model, joined(*both), given)}, state

    inputs = {}
    for name in ("first", "second"):
        inputs[name] = Input(("batch", name), model.embedding.num_embeddings)
        inputs[f"{name}_lengths"] = Input(("batch",), upto=name)
    return Form(model, sequence, inputs | _counted(model, flat))


def _counted(model: SequenceClassifier, flat: dict[str, Input]) -> dict[str, Input]:
    """The whole texts, which n-grams are counted in."""
    return {} if model.ratios is None else {"tokens": flat["tokens"], "token_lengths": LENGTHS}


def _answered(model: SequenceClassifier, read: Tensor, given: Named) -> Tensor:
    """log p of each answer, of what the network made of a text and of the text's n-grams."""
    logits: Tensor = model.head.logits(model.dropout(read))  # type: ignore[operator]
    if model.ratios is not None:
        logits = logits + model.ratios(given["tokens"], given["token_lengths"])
    return model.log_probs(logits)


def _hierarchical(model: SequenceClassifier, body: Hierarchy, flat: dict[str, Input]) -> Form:
    def sequence(given: Named, state: State) -> tuple[Named, State]:
        vectors, _ = body.words(model.embedding(given["sentences"]), lengths=given["words"])
        found, _ = body.sentences(vectors[given["order"]], lengths=given["lengths"])
        return {"log_p": _answered(model, found, given)}, state

    inputs = {
        "sentences": Input(("sentences", "words"), model.embedding.num_embeddings),
        "words": Input(("sentences",), upto="words"),
        "order": Input(("batch", "order"), "sentences"),
        "lengths": Input(("batch",), upto="order"),
    }
    return Form(model, sequence, inputs | _counted(model, flat))


def tagger_forms(model: SequenceTagger) -> Exported:
    """The form of a tagger: the parts of a `TaggedBatch` that the model reads, to the scores of each column of tags.

    `scores.K`, (batch, time, tags), are log p in nats for a softmax and scores for a CRF, which also gives
    `transitions.K`, `start.K` and `end.K`.
    """
    reader = model.reader

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        words, lengths = given["words"], given["lengths"]
        missing = {
            name: words[..., None] for name in TaggedBatch.__annotations__ if name not in given and name != "count"
        }
        ys = model(TaggedBatch(**{**missing, **given}, count=0))
        found: Named = {}
        for place, head in enumerate(model.heads):
            found |= _scores(str(place), head, ys, lengths)
        return found, state

    inputs = {"words": Input(("batch", "time"), reader.embedding.num_embeddings), "lengths": LENGTHS}
    if reader.characters is not None:
        characters = reader.characters.embedding.num_embeddings
        inputs["forms"] = Input(("batch", "time"), "forms")
        inputs["spelled"] = Input(("forms", "letters"), characters)
        inputs["spelled_lengths"] = Input(("forms",), upto="letters", least=1)
    if len(reader.features):
        least = min(table.num_embeddings for table in reader.features)  # type: ignore[type-var]
        inputs["features"] = Input(("batch", "time", len(reader.features)), int(least))  # type: ignore[arg-type]
    return Exported("tags depend on the words that follow", Form(model, sequence, inputs))


def _scores(name: str, head: object, ys: Tensor, lengths: Tensor) -> Named:
    if isinstance(head, CRF):
        parts = {f"{part}.{name}": getattr(head, part) * 1 for part in TRANSITIONS}
        return {f"scores.{name}": head.scores(ys), **parts}
    assert isinstance(head, Categorical)
    return {f"scores.{name}": head.predict(ys, lengths)}

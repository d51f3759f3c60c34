"""Stand-ins for models: they have the interface of the PyTorch models, but another runtime computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from everstep.data.tagged_batches import TaggedBatch
from everstep.heads import CRF, Categorical
from everstep.networks import pairs
from everstep.networks.answers import Answers
from everstep.networks.documents import laid_out
from everstep.networks.forms import Named
from everstep.networks.model_forms import TRANSITIONS
from everstep.networks.sequence_classifier import SequenceClassifier
from everstep.networks.sequence_tagger import Allowed, Decoded, SequenceTagger, decoded_by
from everstep.networks.token_model import TokenModel
from everstep.state import State, where


class Runtime(Protocol):
    """A runtime of the forms of an exported model. A state is a tuple of leaves."""

    def described(self, form: str) -> dict[str, Any] | None:
        """The `inputs` and `outputs` of the form "start", "step" or "sequence" by name; None: there is no such form."""

    def start(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The state before the first step, of what comes before it, such as a source to translate.

        Raises:
            RunError: the export has no such form.
        """

    def initial(self, rows: int) -> tuple[Tensor, ...]:
        """The state of `rows` rows before the first step."""

    def step(self, given: Mapping[str, Tensor], state: State) -> tuple[Named, State]:
        """Run one step: inputs by name and the state to outputs by name and the new state.

        Raises:
            RunError: the export has no step form.
        """

    def sequence(self, given: Mapping[str, Tensor], state: State) -> tuple[Named, State]:
        """Run sequences: inputs by name and the state to outputs by name and the final state.

        Raises:
            RunError: the export has no sequence form.
        """


class _LogP(Categorical):
    """A head whose input is log p already."""

    def __init__(self, classes: int):
        nn.Module.__init__(self)
        self.input_size = self.classes = classes
        self.label_smoothing = 0.0

    def logits(self, ys: Tensor) -> Tensor:
        return ys


class Nowhere(nn.Module):
    """A placeholder for an embedding, whose empty weight only gives the device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0), requires_grad=False)


class TokenStandIn(TokenModel):
    """A `TokenModel` of V symbols that another runtime computes."""

    streams = False

    def __init__(self, vocabulary: int, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime, self.head = runtime, _LogP(vocabulary)
        self.embedding = Nowhere()  # type: ignore[assignment]

    def initial_state(self, batch: int, like: Tensor | None = None) -> State:
        """The state before a text begins."""
        return self._runtime.initial(batch)

    def forward(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Tokens (batch, time) to log p, (batch, time, V), and the final state."""
        rows, time = tokens.shape
        state = self.initial_state(rows) if state is None else state
        lengths = torch.full((rows,), time) if lengths is None else lengths
        cuts = [] if resets is None else resets.any(0).nonzero()[:, 0].tolist()
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, time], strict=True):
            if start in cuts and resets is not None:
                state = where(resets[:, start], self.initial_state(rows), state)
            if stop > start:
                live = (lengths - start).clamp(0, stop - start)
                found, state = self._runtime.sequence({"tokens": tokens[:, start:stop], "lengths": live}, state)
                parts.append(found["log_p"])
        return torch.cat(parts, 1) if parts else torch.zeros(rows, 0, self.head.classes), state

    def outputs(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """log p twice, (batch, time, V) each, and the final state, see `forward`."""
        ys, state = self(tokens, state, lengths=lengths, resets=resets)
        return ys, ys, state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens (batch,) to log p of the next tokens, (batch, V), and the new state."""
        found, state = self._runtime.step({"tokens": tokens}, state)
        return found["log_p"], state


class ClassifierStandIn(SequenceClassifier):
    """A `SequenceClassifier` that another runtime computes.

    Args:
        answers: the possible answers.
        runtime: the runtime.
        ends: for a hierarchical reader, the tokens that end a sentence; None: the model reads whole texts.
        separator: for pairs of texts, the token between them; None: texts are no pairs.
    """

    def __init__(
        self, answers: Answers, runtime: Runtime, ends: Sequence[int] | None = None, separator: int | None = None
    ):
        nn.Module.__init__(self)
        self._runtime, self.answers, self.temperature = runtime, answers, None
        self.embedding = Nowhere()  # type: ignore[assignment]
        self._cut, self.ends, self.separator = ends is not None, tuple(ends or ()), separator

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (batch, time) to log p of each answer, (batch, answers)."""
        given = {"tokens": inputs, "lengths": lengths}
        if self._cut:
            given = {**laid_out(inputs, lengths, self._ending(inputs)), "tokens": inputs, "token_lengths": lengths}
        elif self.separator is not None:
            given = {**pairs.laid_out(inputs, lengths, self.separator), "tokens": inputs, "token_lengths": lengths}
        return self._runtime.sequence(given, ())[0]["log_p"]


class TaggerStandIn(SequenceTagger):
    """A `SequenceTagger` whose scores another runtime computes. The search for the best tags runs here.

    Args:
        tags: the number of tags of each column.
        allowed: for each column which tags may follow one another; None: all.
        crf: whether the heads are CRFs.
        runtime: the runtime.
        biases: as of `SequenceTagger`.
    """

    def __init__(
        self,
        tags: Sequence[int],
        allowed: Sequence[Allowed | None],
        crf: bool,
        runtime: Runtime,
        biases: Sequence[Tensor | None],
    ):
        nn.Module.__init__(self)
        self._runtime, self.biases = runtime, list(biases)
        self.reader = nn.Module()  # type: ignore[assignment]
        self.reader.embedding = Nowhere()  # type: ignore[assignment]
        heads = [
            CRF(None, many, allowed=masks) if crf else _LogP(many) for many, masks in zip(tags, allowed, strict=True)
        ]
        self.heads = nn.ModuleList(heads)

    def _asked(self, batch: TaggedBatch) -> list[Tensor]:
        """Compute the scores of each column, and copy the transitions into CRF heads."""
        names = ("words", "lengths", "forms", "spelled", "spelled_lengths", "features")
        found, _ = self._runtime.sequence({name: getattr(batch, name) for name in names}, ())
        with torch.no_grad():
            for place, head in enumerate(self.heads):
                for part in TRANSITIONS if isinstance(head, CRF) else ():
                    getattr(head, part).copy_(found[f"{part}.{place}"])
        return [found[f"scores.{place}"] for place in range(len(self.heads))]

    def losses(self, batch: TaggedBatch) -> Tensor:
        """−log p(tags) of each sentence, (batch,) nats."""
        lengths, tags = torch.where(batch.known, batch.lengths, 0), batch.tags.clamp_min(0)
        parts = zip(self.heads, self._asked(batch), strict=True)
        return torch.stack([head.loss(ys, tags[..., k], lengths) for k, (head, ys) in enumerate(parts)]).sum(0)  # type: ignore[operator]

    def decode(self, batch: TaggedBatch, n_best: int = 1, marginals: bool = False) -> list[Decoded]:
        """The likeliest tags of each column."""
        parts = zip(self.heads, self._asked(batch), self.biases, strict=True)
        return [decoded_by(head, ys, batch.lengths, n_best, marginals, bias) for head, ys, bias in parts]

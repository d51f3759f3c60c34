"""p(x_t | x_<t) over tokens: an embedding, a stack of cells and a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from everstep.cancellation import check_cancelled
from everstep.cell import scan
from everstep.errors import ConfigError, check_finite
from everstep.heads import BernoulliStop
from everstep.heads.head import VocabularyHead
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import initialise, stack_of
from everstep.networks.softmax_by_name import SoftmaxSection, make_softmax
from everstep.sections import Probability
from everstep.state import State
from everstep.wirings import EmbeddingDropout


class TokenModelSection(SoftmaxSection):
    """The network: embedding, a stack of cells, a softmax."""

    tied: bool = False
    """share the weights of embedding and softmax; a linear layer adapts different sizes"""
    output_dropout: Probability | None = None
    """dropout after the last layer; null: as dropout"""

    ends: Literal["symbol", "stop"] = "symbol"
    """how a line ends: symbol: <eos> is a word like any other; stop: a coin is tossed beside each step (BernoulliStop).
    stop needs data.eos, and softmax full"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the softmax, and two output layers at once."""
        yield from super().disagreements()
        if self.ends == "stop" and self.softmax != "full":
            yield "ends", f"expected symbol where softmax is {self.softmax}; got stop"

    @property
    def at_top(self) -> float:
        """The dropout after the last layer."""
        return self.dropout if self.output_dropout is None else self.output_dropout


class TokenModel(nn.Module):
    """Embedding → stack of cells → softmax.

    Args:
        vocabulary: number of symbols V.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
        label_smoothing: label smoothing of the head.
        end: the symbol that ends a line, if there is one.

    Raises:
        ConfigError: options of the softmax that do not fit the vocabulary.

    Attributes:
        streams: whether `everstep.Stream` can step its body.
    """

    streams = True

    def __init__(
        self,
        vocabulary: int,
        section: TokenModelSection,
        find: Find = no_code,
        label_smoothing: float = 0.0,
        end: int | None = None,
    ):
        super().__init__()
        sparse = section.sparse_embedding(section.tied)
        size = section.embedding_size
        self.embedding = EmbeddingDropout(vocabulary, size, section.embedding_dropout, sparse=sparse)
        # the layers that stand for the dropout after the last cell: it and an Identity, or one of both
        self._at_top = 0 if section.at_top == 0 else 1 if section.variational else 2
        self.body = stack_of(section, size, find, last=section.at_top)
        tied = self.embedding.weight if section.tied else None
        if section.tied:
            # tied to N(0, 1) rows, the softmax would start far from uniform
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.head = self._head(section, vocabulary, tied, label_smoothing, end)
        initialise(section, self)

    def _head(
        self, section: TokenModelSection, words: int, tied: Tensor | None, smoothing: float, end: int | None
    ) -> VocabularyHead:
        if section.ends == "stop":
            if end is None:
                raise ConfigError("model.ends: expected symbol, because the vocabulary has no <eos>; or data.eos true")
            return BernoulliStop(self.body.output_size, words, end=end, tied=tied)
        try:
            return make_softmax(section, self.body.output_size, words, tied, smoothing)
        except ValueError as error:
            raise ConfigError(f"model.softmax: {error}") from error

    def initial_state(self, batch: int, like: Tensor | None = None) -> State:
        """The initial state, leaves (batch, ...), with the dtype and device of `like` or of the weights."""
        return self.body.initial_state(batch, self.embedding.weight if like is None else like)

    def forward(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The inputs of the head (batch, time, features) for tokens (batch, time), and the final state."""
        return self.body(self.embedding(tokens), state, lengths=lengths, resets=resets)  # type: ignore[no-any-return]

    def outputs(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """As `forward`, with the inputs of the head also before dropout."""
        xs = self.embedding(tokens)
        inputs, final = [], []
        layers = self.body.sublayers()
        for layer, start in zip(layers, [None] * len(layers) if state is None else state, strict=True):
            inputs.append(xs)
            xs, end = scan(layer, xs, start, lengths=lengths, resets=resets)
            final.append(end)
        return xs, inputs[-self._at_top] if self._at_top else xs, tuple(final)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """log p of the next tokens (batch, V) in nats after tokens (batch,), and the new state: a `StepFn`."""
        y, state = self.body.step(self.embedding(tokens), state)
        return self.head.predict(y), state


@torch.inference_mode()
def token_log_probs(model: TokenModel, inputs: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """log p(target_t | inputs_≤t) in nats, (batch, time), zero in the padding; computed in windows to bound memory.

    Raises:
        RunError: the model outputs NaN or infinity.
    """
    model.eval()
    batch, time = inputs.shape
    window = max(1, 2**24 // (batch * model.head.classes))
    state: State = model.initial_state(batch)
    parts = []
    for start in range(0, time, window):
        check_cancelled()
        stop = min(start + window, time)
        live = (lengths - start).clamp(0, stop - start)
        ys, state = model(inputs[:, start:stop], state, lengths=live)
        log_p = model.head.predict(ys).gather(-1, targets[:, start:stop, None])[..., 0]
        parts.append(torch.where(torch.arange(stop - start, device=inputs.device) < live[:, None], log_p, 0))
    found = torch.cat(parts, 1) if parts else inputs.new_zeros(batch, 0, dtype=torch.float32)
    check_finite("the score of a line", float(found.sum()))
    return found

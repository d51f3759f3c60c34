"""p(x_t | x_<t) over tokens: an embedding, a stack of cells and a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everstep.cancellation import check_cancelled
from everstep.cell import scan
from everstep.errors import ConfigError, check_finite
from everstep.heads import BernoulliStop
from everstep.heads.head import VocabularyHead
from everstep.heads.max_entropy import MaxEntropy
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import initialise, stack_of
from everstep.networks.recent_words import recent_words
from everstep.networks.softmax_by_name import SoftmaxSection, make_softmax
from everstep.sections import Count, Probability
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
    max_entropy_order: int | None = Field(None, ge=2, le=16)
    """N: weights of n-grams of 2 to N words beside the network (Mikolov 2011); null: none"""
    max_entropy_size: Count = 1 << 22
    """numbers that hold these weights; n-grams share them where a hash says so"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the softmax, and two output layers at once."""
        yield from super().disagreements()
        if self.ends == "stop" and self.softmax != "full":
            yield "ends", f"expected symbol where softmax is {self.softmax}; got stop"
        if self.max_entropy_order is not None and (self.softmax, self.ends) != ("full", "symbol"):
            yield "max_entropy_order", f"expected null where softmax is {self.softmax} and ends {self.ends}"
        if self.max_entropy_order is None and self.max_entropy_size != 1 << 22:
            yield "max_entropy_size", "expected max_entropy_order beside it"

    @property
    def recent(self) -> int:
        """The last words that the softmax reads beside the network's output."""
        return 0 if self.max_entropy_order is None else self.max_entropy_order - 1

    @property
    def at_top(self) -> float:
        """The dropout after the last layer."""
        return self.dropout if self.output_dropout is None else self.output_dropout


class TokenModel(nn.Module):
    """Embedding → stack of cells → softmax.

    With `max_entropy_order` N, the softmax also reads the last N − 1 words (`MaxEntropy`), which are part of the state.

    Args:
        vocabulary: number of symbols V.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
        label_smoothing: label smoothing of the head.
        end: the symbol that ends a line, if there is one.

    Raises:
        ConfigError: options of the softmax that do not fit the vocabulary.

    Attributes:
        streams: whether its body and head make the step of `everstep.Stream`: not where the head reads words too.
        recent: the last words that the head reads beside the output of the body.
    """

    recent = 0

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
        self.recent = section.recent
        if isinstance(self.head, MaxEntropy):
            self.streams = False
            nn.init.zeros_(self.head.direct)  # whatever init_range says: unseen n-grams say nothing

    def _head(
        self, section: TokenModelSection, words: int, tied: Tensor | None, smoothing: float, end: int | None
    ) -> VocabularyHead:
        if section.ends == "stop":
            if end is None:
                raise ConfigError("model.ends: expected symbol, because the vocabulary has no <eos>; or data.eos true")
            return BernoulliStop(self.body.output_size, words, end=end, tied=tied)
        if tied is not None and section.softmax == "adaptive" and tied.shape[1] != self.body.output_size:
            sizes = f"{tied.shape[1]} and {self.body.output_size}"
            raise ConfigError(
                f"model.tied: expected embedding_size = hidden_size where softmax is adaptive; got {sizes}"
            )
        try:
            if (order := section.max_entropy_order) is not None:
                size = section.max_entropy_size
                return MaxEntropy(self.body.output_size, words, longest=order, size=size, tied=tied)
            return make_softmax(section, self.body.output_size, words, tied, smoothing)
        except ValueError as error:
            raise ConfigError(f"model.softmax: {error}") from error

    def initial_state(self, batch: int, like: Tensor | None = None) -> State:
        """The initial state, leaves (batch, ...), with the dtype and device of `like` or of the weights."""
        given = self.embedding.weight if like is None else like
        inner = self.body.initial_state(batch, given)
        if not self.recent:
            return inner
        return inner, torch.zeros(batch, self.recent, dtype=torch.int64, device=given.device)

    def _parts(self, state: State, batch: int) -> tuple[State, Tensor | None]:
        """The state of the body, None at the beginning, and the last words."""
        if not self.recent:
            return state, None
        if state is None:
            return None, torch.zeros(batch, self.recent, dtype=torch.int64, device=self.embedding.weight.device)
        inner, words = state
        return inner, words

    def forward(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The inputs of the head (batch, time, features) for tokens (batch, time), and the final state."""
        inner, words = self._parts(state, tokens.shape[0])
        ys, inner = self.body(self.embedding(tokens), inner, lengths=lengths, resets=resets)
        return self._with_words(ys, inner, tokens, words, lengths, resets)

    def _with_words(
        self,
        ys: Tensor,
        inner: State,
        tokens: Tensor,
        words: Tensor | None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Outputs and state of the body, with the last words of each step behind, if the head reads them."""
        if words is None:
            return ys, inner
        found, after = recent_words(tokens, words, lengths, resets)
        return torch.cat([ys, found], -1), (inner, after)

    def outputs(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """As `forward`, with the outputs of the body also before dropout."""
        inner, words = self._parts(state, tokens.shape[0])
        xs = self.embedding(tokens)
        inputs, final = [], []
        layers = self.body.sublayers()
        for layer, start in zip(layers, [None] * len(layers) if inner is None else inner, strict=True):
            inputs.append(xs)
            xs, end = scan(layer, xs, start, lengths=lengths, resets=resets)
            final.append(end)
        plain = inputs[-self._at_top] if self._at_top else xs
        ys, after = self._with_words(xs, tuple(final), tokens, words, lengths, resets)
        return ys, plain, after

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """log p of the next tokens (batch, V) in nats after tokens (batch,), and the new state: a `StepFn`."""
        inner, words = self._parts(state, tokens.shape[0])
        y, inner = self.body.step(self.embedding(tokens), inner)
        ys, state = self._with_words(y[:, None], inner, tokens[:, None], words)
        return self.head.predict(ys[:, 0]), state


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

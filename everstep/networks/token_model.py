"""p(x_t | x_<t) over tokens: an embedding, a stack of cells and a softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.cell import scan
from everstep.errors import check_finite
from everstep.heads import Categorical
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import EmbeddedSection, initialise, stack_of
from everstep.state import State
from everstep.wirings import EmbeddingDropout


class TokenModelSection(EmbeddedSection):
    """The network: embedding, a stack of cells, a softmax."""

    tied: bool = False
    """share the weights of embedding and softmax; a linear layer adapts different sizes"""


class TokenModel(nn.Module):
    """Embedding → stack of cells → categorical head.

    Args:
        vocabulary: number of symbols V.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
        label_smoothing: label smoothing of the head.

    Attributes:
        streams: whether `everstep.Stream` can step its body.
    """

    streams = True

    def __init__(self, vocabulary: int, section: TokenModelSection, find: Find = no_code, label_smoothing: float = 0.0):
        super().__init__()
        self.embedding = EmbeddingDropout(vocabulary, section.embedding_size, section.embedding_dropout)
        self._dropped_at_top = section.dropout > 0
        self.body = stack_of(section, section.embedding_size, find)
        tied = self.embedding.weight if section.tied else None
        if section.tied:
            # tied to N(0, 1) rows, the softmax would start far from uniform
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.head = Categorical(self.body.output_size, vocabulary, tied=tied, label_smoothing=label_smoothing)
        initialise(section, self)

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
        return xs, inputs[-1] if self._dropped_at_top else xs, tuple(final)

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
        stop = min(start + window, time)
        live = (lengths - start).clamp(0, stop - start)
        ys, state = model(inputs[:, start:stop], state, lengths=live)
        log_p = model.head.predict(ys).gather(-1, targets[:, start:stop, None])[..., 0]
        parts.append(torch.where(torch.arange(stop - start, device=inputs.device) < live[:, None], log_p, 0))
    found = torch.cat(parts, 1) if parts else inputs.new_zeros(batch, 0, dtype=torch.float32)
    check_finite("the score of a line", float(found.sum()))
    return found

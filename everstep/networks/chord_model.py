"""p(chord_t | chords before it): a stack of cells over chords, and a head with a label a key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell
from everstep.data.chord_batches import ChordBatch
from everstep.heads import NADE, Bernoulli
from everstep.learn.objective import Loss
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import LayersSection, initialise, layer_problems, stack_of
from everstep.sections import Size
from everstep.state import State, valid, where

SELDOM = -3.0
"""The log-odds that a key sounds, before training: about 4 of 88 do."""
NEVER = -1e30
"""log p of what cannot come next: finite, so that no product with it is NaN."""


class ChordSection(LayersSection):
    """The network: a stack of cells that reads chords, and the distribution of the next one."""

    output: Literal["nade", "independent"] = "nade"
    """nade: each key given those below it (RNN-NADE; Boulanger-Lewandowski 2012); independent: each by itself"""
    nade_size: Size = 100
    """hidden features of nade"""

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, 1, find)


class ChordModel(nn.Module):
    """Reads chords, vectors x_t of K keys that sound (1) or do not (0), and gives p(x_t | x_<t), with x_0 = 0.

    Args:
        keys: K.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
    """

    def __init__(self, keys: int, section: ChordSection, find: Find = no_code):
        super().__init__()
        self.keys = keys
        self.body = stack_of(section, keys, find)
        size = self.body.output_size
        self.head = NADE(size, keys, section.nade_size) if section.output == "nade" else Bernoulli(size, keys)
        nn.init.constant_(self.head.bias, SELDOM)
        initialise(section, self)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def forward(self, chords: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The outputs (B, T, features) before each of the chords (B, T, K)."""
        ys, _ = self.body(F.pad(chords, (0, 0, 1, 0))[:, :-1], lengths=lengths)
        return ys  # type: ignore[no-any-return]

    def loss(self, chords: Tensor, lengths: Tensor) -> Tensor:
        """−Σ_t log p(x_t | x_<t) of each piece, (B,), in nats."""
        return self.head.loss(self(chords, lengths), chords, lengths)

    def nats(self, chords: Tensor, lengths: Tensor) -> Tensor:
        """−log p of each chord given those before it, (B, T), 0 in the padding."""
        ys = self(chords, lengths)
        each = self.head.loss(ys.flatten(0, 1)[:, None], chords.flatten(0, 1)[:, None])
        return each.view(chords.shape[:2]) * valid(lengths, chords.shape[1])

    def initial_state(self, batch: int) -> State:
        """The state before the first token; see `KeyByKey`."""
        return self.by_key.initial_state(batch, self.head.bias)

    @property
    def by_key(self) -> KeyByKey:
        """The same model, a key a step."""
        return KeyByKey(self.body, self.head)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """log p of the next tokens (batch, K + 1) in nats after tokens (batch,), and the new state: a `StepFn`."""
        return self.by_key.step(F.one_hot(tokens, self.keys + 1).to(self.head.bias), state)


class KeyByKey(Cell):
    """Reads and foretells chords one key at a time: tokens, one-hot (batch, K + 1), to log p of the next, in nats.

    The tokens of a chord are its keys from the lowest to the highest, and then the token K, which ends it; a piece
    begins behind the end of a silent chord. Key k is next if no key sounds from the last token up to k, and k does:
    log p(k) = log p_k + Σ_{last<j<k} log(1 − p_j), with p_j given the keys before it. So the tokens of a chord together
    have the log p that the head gives the chord.

    Args:
        body: cells over chords (batch, K).
        head: the distribution of a chord.
    """

    below: Tensor

    def __init__(self, body: Cell, head: NADE | Bernoulli):
        super().__init__(head.classes + 1, head.classes + 1)
        self.body, self.head = body, head
        below = torch.ones_like(head.bias.detach()).expand(head.classes, -1).triu(1)  # whether key j is below key k
        self.register_buffer("below", below, persistent=False)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The state of the body, its last output, and the keys that the chord has so far."""
        inner = self.body.initial_state(batch, like)
        return inner, like.new_zeros(batch, self.body.output_size), like.new_zeros(batch, self.head.classes)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        inner, y, chord = state
        ended = x[:, -1] > 0.5
        after, stepped = self.body.step(chord, inner)
        inner, y = where(ended, (stepped, after), (inner, y))
        chord = torch.where(ended[:, None], 0.0, chord + x[:, :-1])
        logits = self.head.logits_after(y, chord)
        gone = chord + chord @ self.below.t() > 0.5  # the keys up to the last token
        silent = torch.where(gone, 0.0, F.logsigmoid(-logits))
        sounds = torch.where(gone, NEVER, F.logsigmoid(logits))
        return torch.cat([sounds + silent @ self.below, silent.sum(-1, keepdim=True)], -1), (inner, y, chord)


def chord_losses(model: ChordModel, batch: ChordBatch) -> Iterator[Loss]:
    """One `Loss` per batch: −Σ_t log p(x_t | x_<t)."""
    nats = model.loss(batch.chords, batch.lengths)
    yield Loss(nats, nats.detach())

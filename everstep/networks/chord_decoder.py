"""Chords as tokens, for generation and scoring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.data.chord_batches import Roll
from everstep.data.readers.chords import chords_text
from everstep.decode import Sampler, draws
from everstep.decode.decoder import Decoder
from everstep.networks.chord_model import ChordModel
from everstep.networks.stand_ins import Runtime
from everstep.state import State


def tokens_of(roll: Roll) -> list[int]:
    """A piece (steps, K) as tokens: the keys of each step from low to high, and K, which ends it.

    >>> import numpy as np
    >>> tokens_of(np.array([[True, False, True], [False, False, False]]))
    [0, 2, 3, 3]
    """
    end = roll.shape[1]
    return [token for keys in roll for token in (*keys.nonzero()[0].tolist(), end)]


def chord_decoder(model: ChordModel, given: Roll) -> Decoder:
    """A decoder that continues the piece `given` (steps, K)."""
    prompt = torch.tensor([model.keys, *tokens_of(given)], device=model.device)
    return Decoder(model.step, model.initial_state(1), prompt, end=None, begins=1)


def continued(model: ChordModel, given: Roll, steps: int, sampler: Sampler) -> list[list[int]]:
    """The keys of each of the `steps` chords that the model samples after the piece `given` (steps, K)."""
    decoder = chord_decoder(model, given)
    chords: list[list[int]] = [[]]
    for token in draws(decoder.step, decoder.state, decoder.prompt, steps * (model.keys + 1), sampler):
        if int(token) < model.keys:
            chords[-1].append(int(token))
        elif len(chords) == steps:
            break
        else:
            chords.append([])
    return chords


class ChordSpeller:
    """Tokens to text, a chord at a time; one that has not ended is left out.

    Args:
        lowest: the MIDI number of the first key.
        keys: K.
    """

    def __init__(self, lowest: int, keys: int):
        self._lowest, self._keys = lowest, keys
        self._chord: list[int] = []
        self._begun = False

    def spell(self, ids: Sequence[int]) -> str:
        """The chords that these tokens complete, each but the first after a space."""
        text = ""
        for token in ids:
            if token < self._keys:
                self._chord.append(self._lowest + token)
                continue
            text += (" " if self._begun else "") + chords_text([tuple(self._chord)])
            self._begun, self._chord = True, []
        return text

    def end(self) -> str:
        """Nothing more."""
        return ""


class ChordStandIn(ChordModel):
    """A `ChordModel` whose step another runtime computes.

    Args:
        keys: K.
        runtime: the runtime.
    """

    def __init__(self, keys: int, runtime: Runtime):
        torch.nn.Module.__init__(self)
        self.keys, self._runtime = keys, runtime

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def initial_state(self, batch: int) -> State:
        """The state before the first token."""
        return self._runtime.initial(batch)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """log p of the next tokens (batch, K + 1) after tokens (batch,), and the new state."""
        found, state = self._runtime.step({"tokens": tokens}, state)
        return found["log_p"], state

    def loss(self, chords: Tensor, lengths: Tensor) -> Tensor:
        """−log p of each piece, (B,), in nats."""
        return self.nats(chords, lengths).sum(1)

    def nats(self, chords: Tensor, lengths: Tensor) -> Tensor:
        """−log p of each chord given those before it, (B, T), 0 in the padding; token by token."""
        rows, time, _ = chords.shape
        spelled = [tokens_of(roll[:length].numpy() > 0) for roll, length in zip(chords, lengths.tolist(), strict=True)]
        found, state = torch.zeros(rows, time + 1), self.initial_state(rows)
        token, at = torch.full((rows,), self.keys), torch.zeros(rows, dtype=torch.int64)
        for place in range(max(map(len, spelled), default=0)):
            log_p, state = self.step(token, state)
            live = torch.tensor([place < len(tokens) for tokens in spelled])
            token = torch.tensor([tokens[place] if place < len(tokens) else self.keys for tokens in spelled])
            found[torch.arange(rows), at] -= torch.where(live, log_p[torch.arange(rows), token], 0)
            at = (at + (token == self.keys).long()).clamp_max(time)
        return found[:, :time]

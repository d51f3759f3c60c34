"""The language model: p(x_t | x_<t) by an embedding, a stack of cells and a softmax."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.cells import GRU, LSTM, RNN, GRUBefore, MinGRU, TreeCell
from everstep.data.batches import Batch, Batches
from everstep.errors import ConfigError, RunError
from everstep.heads import Categorical
from everstep.learn.bptt import narrow
from everstep.learn.objective import Loss, Objective
from everstep.learn.regularisers import activation_penalty, change_penalty, chosen, l2
from everstep.learn.rules import Rule, clip_by_value, gradient_noise, scale_to_fixed_norm
from everstep.scanning import scan
from everstep.state import State, detach
from everstep.tasks.config import ModelConfig, TrainConfig
from everstep.wirings import (
    Dropout,
    EmbeddingDropout,
    Identity,
    Residual,
    Stack,
    StateDropout,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)

GATES = {"LSTM": 4, "GRU": 3, "GRUBefore": 3, "RNN": 1, "MinGRU": 2}  # matrices of x, each (hidden, input)
CELLS: dict[str, Any] = {cell.__name__: cell for cell in (GRU, LSTM, RNN, GRUBefore, MinGRU)}


class LanguageModel(nn.Module):
    """Embedding → stack of cells → categorical head.

    Args:
        vocabulary: number of symbols V.
        config: sizes, cell and dropouts, as in a recipe's `model`.
        label_smoothing: of the head.

    Raises:
        ConfigError: its weights would not fit into this machine's memory.
    """

    def __init__(self, vocabulary: int, config: ModelConfig, label_smoothing: float = 0.0):
        super().__init__()
        _check_size(vocabulary, config)
        self.embedding = EmbeddingDropout(vocabulary, config.embedding_size, config.embedding_dropout)
        self._dropped_at_top = config.dropout > 0
        self.body = _body(config)
        tied = self.embedding.weight if config.tied else None
        if config.tied:
            # a softmax over N(0, 1) rows would start far from uniform
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.head = Categorical(self.body.output_size, vocabulary, tied=tied, label_smoothing=label_smoothing)
        if config.init_range is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -config.init_range, config.init_range)

    def initial_state(self, batch: int, like: Tensor | None = None) -> State:
        """The state before a text begins, leaves (batch, ...), of the dtype and device of `like` or of the weights."""
        return self.body.initial_state(batch, self.embedding.weight if like is None else like)

    def forward(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Tokens (batch, time) to what the head reads (batch, time, features), and the final state."""
        return self.body(self.embedding(tokens), state, lengths=lengths, resets=resets)  # type: ignore[no-any-return]

    def outputs(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """As `forward`, and beside what the head reads the same before its dropout."""
        xs = self.embedding(tokens)
        inputs, final = [], []
        layers = self.body.scanned()
        for layer, start in zip(layers, [None] * len(layers) if state is None else state, strict=True):
            inputs.append(xs)
            xs, end = scan(layer, xs, start, lengths=lengths, resets=resets)
            final.append(end)
        return xs, inputs[-1] if self._dropped_at_top else xs, tuple(final)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens (batch,) to log p of the next ones (batch, V) in nats, and the new state: a `StepFn`."""
        y, state = self.body.step(self.embedding(tokens), state)
        return self.head.predict(y), state


def _check_size(vocabulary: int, config: ModelConfig) -> None:
    """Before anything of it is made: an allocator would end the process, or fill the memory until the system does."""
    sizes = [config.embedding_size, *config.hidden_sizes]
    gates = GATES.get(config.cell, 1) if isinstance(config.cell, str) else 1
    recurrent = config.cell != "MinGRU"
    count = vocabulary * sizes[0] + (0 if config.tied else vocabulary * sizes[-1])
    count += sum(gates * new * (old + recurrent * new) for old, new in pairwise(sizes))
    if 4 * count > _memory():
        raise ConfigError(
            f"model: at least {count:,} parameters, {4 * count / 2**30:,.1f} GiB of weights, do not fit into this "
            f"machine's {_memory() / 2**30:,.1f} GiB of memory; lower model.hidden_size, model.layers or "
            "model.embedding_size"
        )


def _memory() -> int:
    """Bytes of this machine; where it does not tell, more than any has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 1 << 42


def _body(config: ModelConfig) -> Stack:
    cells: list[Cell] = []
    size = config.embedding_size
    for depth, hidden in enumerate(config.hidden_sizes):
        kind = config.cell
        cell: Cell = CELLS[kind](size, hidden) if isinstance(kind, str) else TreeCell(size, hidden, kind)
        if config.state_dropout:
            cell = StateDropout(cell, config.state_dropout)  # type: ignore[arg-type]
        if config.zoneout:
            cell = Zoneout(cell, config.zoneout)
        if config.weight_drop:
            names = [name for name, _ in cell.named_parameters() if name.rpartition(".")[2] == "weight_hh"]
            cell = WeightDrop(cell, config.weight_drop, names)
        if config.residual and size == hidden:
            cell = Residual(cell)
        cells += _dropped(cell, config.dropout if depth else config.input_dropout, config.variational)
        size = hidden
    if config.dropout:
        cells += _dropped(Identity(size), config.dropout, config.variational)
    return Stack(*cells)


def _dropped(cell: Cell, p: float, variational: bool) -> list[Cell]:
    if p == 0:
        return [cell]
    return [VariationalDropout(cell, p)] if variational else [Dropout(cell.input_size, p), cell]


def update_rules(model: nn.Module, train: TrainConfig, seed: int) -> list[Rule]:
    """What a recipe does between backward and `clip_norm`, in this order: l2, clip_value, fixed_norm, gradient_noise.

    Raises:
        ConfigError: `train.l2_on` has a name that no trainable parameter of the model has.
    """
    rules: list[Rule] = []
    if train.l2:
        names = (train.l2_on,) if isinstance(train.l2_on, str) else train.l2_on
        chosen(model, names)
        rules.append(l2(train.l2, names))
    if train.clip_value is not None:
        rules.append(clip_by_value(train.clip_value))
    if train.fixed_norm is not None:
        rules.append(scale_to_fixed_norm(train.fixed_norm))
    if train.gradient_noise:
        rules.append(gradient_noise(train.gradient_noise, train.gradient_noise_decay, seed))
    return rules


def likelihood(k2: int | None = None, activation: float = 0.0, change: float = 0.0) -> Objective:
    """The objective −Σ log p(x_t | x_<t) under truncated BPTT (Williams & Peng 1990), with AR and TAR if asked for.

    Args:
        k2: steps that the gradient goes back. Where a batch is longer, it is cut into pieces of k2 steps
            whose gradients are added up; where it is longer, the batch brings the earlier steps along as context, run
            again with today's weights. None: as far as the batch goes.
        activation: α of `activation_penalty`, in nats per target.
        change: β of `change_penalty`, likewise; steps without a loss have none.
    """

    def objective(model: nn.Module, batch: Batch, state: State | None) -> Iterator[Loss]:
        assert isinstance(model, LanguageModel)
        time = batch.inputs.shape[1]
        span = time if k2 is None or batch.context else min(k2, time)
        for start in range(0, time, span):
            piece = batch if span >= time else narrow(batch, start, start + span)
            ys, plain, state, carried = _run(model, piece, state)
            seen = slice(piece.context, None)
            lengths = None if piece.lengths is None else (piece.lengths - piece.context).clamp_min(0)
            total, nats = model.head.smoothed(ys[:, seen], piece.targets[:, seen], lengths)
            if activation:
                total = total + activation * activation_penalty(ys[:, seen], lengths)
            if change:
                resets = None if piece.resets is None else piece.resets[:, seen]
                total = total + change * change_penalty(plain[:, seen], lengths, resets)
            yield Loss(total, nats, carried)
            state = detach(state)

    return objective


def _run(model: LanguageModel, batch: Batch, state: State | None) -> tuple[Tensor, Tensor, State, State]:
    """Outputs after and before dropout, the final state, and that where the next batch begins, maybe within this."""
    time = batch.inputs.shape[1]
    if not 0 < batch.advance < time:
        ys, plain, state = model.outputs(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
        return ys, plain, state, state
    first, rest = narrow(batch, 0, batch.advance), narrow(batch, batch.advance, time)
    *before, carried = model.outputs(first.inputs, state, lengths=first.lengths, resets=first.resets)
    *after, state = model.outputs(rest.inputs, carried, lengths=rest.lengths, resets=rest.resets)
    ys, plain = (torch.cat(parts, 1) for parts in zip(before, after, strict=True))
    return ys, plain, state, carried


@torch.no_grad()
def mean_nats(
    model: LanguageModel, batches: Batches, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[float, int]:
    """Mean −log p per token in nats, and the tokens counted, in one pass with the state carried along."""
    model.eval()
    total, count = 0.0, 0
    state = None
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        ys, state = model(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
        total += float(model.head.loss(ys, batch.targets, batch.lengths).double().sum())
        count += batch.count
        state = state if batches.carries_state else None
        progress(index + 1, len(batches))
    return total / max(count, 1), count


@torch.inference_mode()
def token_log_probs(model: LanguageModel, inputs: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """log p(target_t | inputs_≤t) in nats, (batch, time), zero in the padding; in windows, to bound memory.

    Raises:
        RunError: the model gives NaN or infinity.
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
        parts.append(torch.where(torch.arange(stop - start) < live[:, None], log_p, 0))
    found = torch.cat(parts, 1) if parts else torch.zeros(batch, 0)
    check_finite("the score of a line", float(found.sum()))
    return found


def check_finite(what: str, nats: float) -> None:
    """Refuse a score that is none.

    Raises:
        RunError: it is NaN or infinite; `what` says of what it is.
    """
    if not math.isfinite(nats):
        raise RunError(f"{what} is {nats}: the model diverged or its weights are damaged")


def report(nats: float, tokens: int, chars: int, size: int, words: int) -> dict[str, float]:
    """The field's measures of a text from its mean nats per token.

    Args:
        nats: mean nats per token.
        tokens: tokens scored.
        chars: characters, line ends included.
        size: bytes in UTF-8, likewise.
        words: words, each line's end counted as one (the `<eos>` of word models).

    Returns:
        nats_per_token, bits_per_token, perplexity (per token), bits_per_char, bits_per_byte, word_perplexity.
    """
    total = nats * tokens
    return {
        "nats_per_token": nats,
        "bits_per_token": nats / math.log(2),
        "perplexity": _exp(nats),
        "bits_per_char": total / math.log(2) / max(chars, 1),
        "bits_per_byte": total / math.log(2) / max(size, 1),
        "word_perplexity": _exp(total / max(words, 1)),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf

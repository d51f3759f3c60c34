"""Log-probabilities of separate lines and token sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch

from everstep.data import Tokenizer
from everstep.data.text.decoding import as_read
from everstep.errors import DataError
from everstep.networks.token_model import TokenModel, token_log_probs

SCORED_TOKENS = 4096
"""Most padded tokens scored in one batch."""


@dataclass(frozen=True)
class Score:
    """One scored line.

    Attributes:
        logp: log p(line) in nats.
        tokens: number of scored tokens, including `<eos>` if the vocabulary has it.
        line: the line as given.
        token_logps: log p of each token given those before it, in nats.
        unknown: number of `<unk>` tokens, whose log p does not account for the actual word; None if the vocabulary has
            no `<unk>`.
        ids: the scored tokens, as numbers of the run's vocabulary; empty if the job does not give them.
    """

    logp: float
    tokens: int
    line: str
    token_logps: tuple[float, ...]
    unknown: int | None = None
    ids: tuple[int, ...] = ()


RowScorer = Callable[[Sequence[Sequence[int]]], list[tuple[float, ...]]]
"""Gives log p in nats of each token of each row, except the first, given those before it."""


def score_lines(model: TokenModel, tokenizer: Tokenizer, lines: Sequence[str], first_line: int = 1) -> list[Score]:
    """log p of each line in nats, each from the initial state; see `Run.score`."""
    return scored_lines(partial(score_rows, model), tokenizer, lines, first_line)


def scored_lines(rows_of: RowScorer, tokenizer: Tokenizer, lines: Sequence[str], first_line: int = 1) -> list[Score]:
    """log p of each line in nats, each by itself, by a function of rows of tokens."""
    rows = [_encode(tokenizer, number, line) for number, line in enumerate(lines, first_line)]
    unk = tokenizer.unk_id
    unknown = [None if unk is None else ids[1:].count(unk) for ids in rows]
    scored = zip(lines, rows, rows_of(rows), unknown, strict=True)
    return [Score(sum(row), len(row), line, row, count, tuple(ids[1:])) for line, ids, row, count in scored]


def scored_in_order(rows_of: RowScorer, tokenizer: Tokenizer, lines: Sequence[str]) -> list[Score]:
    """log p of each line in nats, each after all before it, by a function of rows of tokens.

    Without a symbol that ends a line, each is scored by itself.
    """
    if tokenizer.begin_id is None:
        return scored_lines(rows_of, tokenizer, lines)

    def one_text(rows: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        whole = [token for row in rows[:1] for token in row[:1]] + [token for row in rows for token in row[1:]]
        (logps,) = rows_of([whole])
        ends = [0, *accumulate(len(row) - 1 for row in rows)]
        return [logps[start:end] for start, end in pairwise(ends)]

    return scored_lines(one_text, tokenizer, lines)


def score_rows(model: TokenModel, rows: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """log p in nats of each token of each row, except the first, given those before it.

    Each row is scored independently of the others and their order.
    """
    device = model.embedding.weight.device
    found: list[tuple[float, ...]] = [()] * len(rows)
    for batch in _batches(sorted(range(len(rows)), key=lambda place: len(rows[place])), rows):
        lengths = torch.tensor([len(rows[place]) - 1 for place in batch])
        padded = torch.zeros(len(batch), int(lengths.max()) + 1, dtype=torch.int64)
        for at, place in enumerate(batch):
            padded[at, : len(rows[place])] = torch.tensor(rows[place])
        padded = padded.to(device)
        logps = token_log_probs(model, padded[:, :-1], padded[:, 1:], lengths.to(device))
        for place, row, length in zip(batch, logps.tolist(), lengths.tolist(), strict=True):
            found[place] = tuple(row[:length])
    return found


def _batches(order: list[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Row indices by rising length, in batches of at most SCORED_TOKENS padded tokens; empty rows are omitted."""
    batches: list[list[int]] = []
    for place in order:
        length = len(rows[place]) - 1
        if length == 0:
            continue
        if not batches or length * (len(batches[-1]) + 1) > SCORED_TOKENS:
            batches.append([])
        batches[-1].append(place)
    return batches


def _encode(tokenizer: Tokenizer, number: int, line: str) -> list[int]:
    """The tokens of a line, preceded by the begin symbol."""
    text = as_read(line, head=number == 1).removesuffix("\n")
    try:
        ids = [int(i) for i in tokenizer.encode(text, line_end=bool(text))]
    except DataError:
        raise tokenizer.unknown_error(text, "the lines to score", number) from None
    if not text and tokenizer.eos_id is not None:
        ids = [tokenizer.eos_id]
    begin = tokenizer.begin_id
    return ids or [0] if begin is None else [begin, *ids]

"""A passage of tokens as a token model reads it, for pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.data import Tokenizer
from everstep.look.passage import Passage
from everstep.networks.scoring import score_rows
from everstep.networks.token_model import TokenModel


def token_passage(model: TokenModel, tokenizer: Tokenizer, ids: Sequence[int], unit: str) -> Passage:
    """A passage of tokens: texts, inputs of the body, surprise; `unit` is the name of a token."""
    begin = tokenizer.begin_id
    read = list(ids) if begin is None else [begin, *ids]
    skipped = len(read) - len(ids)
    labels, spans = pieces(tokenizer, ids, unit)
    row = torch.tensor(read, device=model.embedding.weight.device)
    with torch.no_grad():
        inputs = model.embedding(row)

    def surprise() -> list[float]:
        (log_p,) = score_rows(model, [read])
        bits = [0.0] * (len(ids) - len(log_p)) + [-nats / math.log(2) for nats in log_p]
        return [sum(bits[first : last + 1]) for first, last in spans]

    return Passage(
        body=model.body,
        inputs=inputs,
        labels=labels,
        places=[last + skipped for _, last in spans],
        unit=unit,
        shown="character" if unit == "byte" else unit,
        targets=row[1:],
        loss=None if model.recent else lambda ys, targets: _nats(model, ys, targets),
        surprise=surprise,
        model_loss=lambda other, rows, time: _mean_loss(other, row, rows, time),
    )


def _nats(model: TokenModel, ys: Tensor, targets: Tensor) -> Tensor:
    return -model.head.predict(ys).gather(-1, targets[..., None])[..., 0]


def _mean_loss(model: TokenModel, row: Tensor, rows: int, time: int) -> Tensor:
    inputs, targets = (ids[: rows * time].view(rows, time) for ids in (row[:-1], row[1:]))
    return _nats(model, model(inputs)[0], targets).mean()


def pieces(tokenizer: Tokenizer, ids: Sequence[int], unit: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The pieces of text to show for tokens, with the first and last token of each.

    The bytes of a character form one piece.
    """
    labels, spans, start = [], [], 0
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[start:stop]))
        if text.endswith("\ufffd") and stop < len(ids):
            continue
        if unit == "word":
            text = text if text in ("\n", "<eos>") else f"{text.strip()} "
        labels.append(text)
        spans.append((start, stop - 1))
        start = stop
    return labels, spans

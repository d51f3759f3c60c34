"""p(tags | words): a reader of words, cells in one direction or both, and a head for each tag column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from everstep.data.tagged_batches import TaggedBatch
from everstep.heads import CRF, Categorical, Head
from everstep.learn.objective import Loss
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import encoder_of, initialise, stack_of
from everstep.networks.word_reader import WordReader, WordSection
from everstep.sections import Section, Size

Allowed = tuple[Tensor, Tensor, Tensor]
"""Allowed transitions, first tags and last tags; see `CRF`."""


class TaggerSection(WordSection):
    """The network: reader of words, cells, a head for each tag column."""

    hidden_size: Size | tuple[Size, ...] = 100
    """units of each layer, in each direction; a list: one size per layer"""
    bidirectional: bool = True
    """read in both directions, with hidden_size units each"""
    head: Literal["crf", "softmax"] = "crf"
    """crf: a tag depends on its neighbours, and the scheme is never violated; softmax: tags are independent"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the layers, options that both directions do not support, and invalid `affixes`."""
        yield from super().disagreements()
        if self.bidirectional and self.residual:
            yield "residual", "expected false beside bidirectional, whose layers give more features than they read"
        if 0 in self.affixes:
            yield "affixes", "expected lengths of endings, or negative ones of beginnings; got 0"
        if len(set(self.affixes)) < len(self.affixes):
            yield "affixes", f"expected each length once; got {list(self.affixes)}"


class TagDecodeSection(Section):
    """How tags are predicted."""

    outside_penalty: float = 0.0
    """subtracted from the score of O at each word, where tags are of spans: above 0, more spans are predicted and fewer
    of them are right; choose it by F1 on the validation split; it may change after training"""


class Decoded(NamedTuple):
    """Predictions for a batch in one tag column.

    Attributes:
        tags: (B, N, T) int64: the N best sequences of each sentence, best first.
        log_p: (B, N) nats, if several sequences or probabilities were requested; −∞ where fewer than N exist.
        marginals: (B, T, K) p(tag) of each word, if requested.
    """

    tags: Tensor
    log_p: Tensor | None
    marginals: Tensor | None


class SequenceTagger(nn.Module):
    """Word reader → cells → a softmax or a CRF for each tag column.

    Args:
        section: the `model` section of a recipe.
        reader: maps words to vectors.
        tags: number of tags in each column.
        allowed: allowed transitions of each column, or None for all.
        find: finds cells in the user's files.
        biases: of each column a tensor (K,) that is added to the scores of the tags when they are predicted, but not
            in the loss, or None.
    """

    def __init__(
        self,
        section: TaggerSection,
        reader: WordReader,
        tags: Sequence[int],
        allowed: Sequence[Allowed | None],
        find: Find = no_code,
        biases: Sequence[Tensor | None] = (),
    ):
        super().__init__()
        self.reader = reader
        self.biases = list(biases) or [None] * len(tags)
        layers = encoder_of if section.bidirectional else stack_of
        self.body = layers(section, reader.output_size, find)
        self.dropout = nn.Dropout(section.dropout if section.bidirectional else 0.0)  # a stack has its own
        size = self.body.output_size
        self.heads = nn.ModuleList(
            CRF(size, many, allowed=masks) if section.head == "crf" else Categorical(size, many)
            for many, masks in zip(tags, allowed, strict=True)
        )
        initialise(section, self)

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """The inputs of the heads (B, T, features), from word vectors (B, T, …)."""
        ys, _ = self.body(inputs, lengths=lengths)
        return self.dropout(ys)  # type: ignore[no-any-return]

    def forward(self, batch: TaggedBatch) -> Tensor:
        """The inputs of the heads, (B, T, features)."""
        return self.encode(self.reader(batch), batch.lengths)

    def losses(self, batch: TaggedBatch) -> Tensor:
        """−log p(tags) of each sentence, summed over columns, (B,) nats; 0 for a sentence with an unknown tag."""
        ys = self(batch)
        lengths = torch.where(batch.known, batch.lengths, 0)
        tags = batch.tags.clamp_min(0)
        losses = [cast(Head, head).loss(ys, tags[..., column], lengths) for column, head in enumerate(self.heads)]
        return torch.stack(losses).sum(0)

    @torch.no_grad()
    def decode(self, batch: TaggedBatch, n_best: int = 1, marginals: bool = False) -> list[Decoded]:
        """The most probable tags of each column; with `marginals`, also their probabilities.

        With a bias b, the distribution is p(tags) · e^(Σ_t b[tag of word t]), normalised.
        """
        ys = self(batch)
        return [
            decoded_by(head, ys, batch.lengths, n_best, marginals, bias)
            for head, bias in zip(self.heads, self.biases, strict=True)
        ]


def decoded_by(
    head: nn.Module, ys: Tensor, lengths: Tensor, n_best: int, marginals: bool, bias: Tensor | None
) -> Decoded:
    """What a head, a CRF or a softmax, predicts of what it reads."""
    if isinstance(head, CRF):
        if bias is not None:
            head, ys = head.of_scores(), head.scores(ys) + bias.to(ys.device)
        tags, log_p = _best(head, ys, lengths, n_best, marginals)
        return Decoded(tags, log_p, head.marginals(ys, lengths) if marginals else None)
    assert isinstance(head, Categorical)
    every = head.predict(ys, lengths)
    if bias is not None:
        every = (every + bias.to(ys.device)).log_softmax(-1)
    if n_best == 1 and not marginals:
        return Decoded(every.argmax(-1)[:, None], None, None)
    free = CRF(None, head.classes).to(every.device)  # its transitions are 0, so that tags are independent
    tags, log_p = _best(free, every, lengths, n_best, marginals)
    return Decoded(tags, log_p, every.exp() if marginals else None)


def _best(head: CRF, ys: Tensor, lengths: Tensor, n_best: int, wanted: bool) -> tuple[Tensor, Tensor | None]:
    if n_best > 1:
        return head.nbest(ys, n_best, lengths)
    tags = head.predict(ys, lengths)
    return tags[:, None], -head.loss(ys, tags, lengths)[:, None] if wanted else None


def tag_losses(model: SequenceTagger, batch: TaggedBatch) -> Iterator[Loss]:
    """One loss per batch: −log p of the tags of each sentence."""
    nats = model.losses(batch)
    yield Loss(nats, nats.detach())

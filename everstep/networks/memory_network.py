"""p(answer | story, question): a memory of sentences that is read in several hops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from everstep.networks.answers import Answers
from everstep.networks.classifier import Classifier
from everstep.sections import Count, Probability, Section, Size

INIT = 0.1
"""Standard deviation of new embeddings, as in the paper."""


class MemoryNetworkSection(Section):
    """An end-to-end memory network."""

    embedding_size: Size = 40
    """features d of a sentence"""
    hops: Count = 3
    """how often the memory is read"""
    tying: Literal["adjacent", "layerwise"] = "adjacent"
    """adjacent: what a hop reads is what the next one looks for; layerwise: all hops are one step, as of a recurrent
    network"""
    sentence: Literal["position", "bag"] = "position"
    """position: words count by their place in a sentence; bag: all the same"""
    memory: Count = 50
    """most sentences, the latest ones"""
    time_noise: Probability = 0.1
    """in training: the chance that a sentence seems to lie one further back, with all before it"""
    dropout: Probability = 0.0
    """dropout of what the last hop gives"""


class MemoryNetwork(Classifier):
    """An end-to-end memory network (Sukhbaatar 2015, "End-to-end memory networks").

    Sentence i, words x_ij, gives two vectors at hop k: m_i = Σ_j l_j ∘ A_k x_ij + T_k(i) to look for, and c_i likewise
    with C_k and its own T to read. With u¹ = Σ_j l_j ∘ B q_j of the question,

    p_i = softmax(u^k · m_i), o^k = Σ_i p_i c_i, u^{k+1} = u^k + o^k (layerwise: H u^k + o^k),

    and log p(answer) is a linear softmax of u after the last hop. T(i) depends on how many sentences come after i.
    Adjacent tying: A_{k+1} = C_k and B = A_1; layerwise: A and C are the same at every hop. l_j = 1, or, by position
    j = 1 … J and feature f = 1 … d, (1 − j/J) − (f/d)(1 − 2j/J).

    Args:
        vocab_size: V; ids are 1 … V, 0 is no word.
        answers: the answers of the head.
        section: the `model` section of a recipe.
        calibrated: whether there is a temperature.
    """

    def __init__(self, vocab_size: int, answers: Answers, section: MemoryNetworkSection, calibrated: bool = False):
        super().__init__(answers, calibrated)
        self.vocab_size = vocab_size
        self.hops, self.places, self._noise = section.hops, section.memory, section.time_noise
        self._by_position, self._adjacent = section.sentence == "position", section.tying == "adjacent"
        size, sets = section.embedding_size, section.hops + 1 if self._adjacent else 2
        self.words = nn.ModuleList(_embedding(vocab_size + 1, size, 0) for _ in range(sets))
        self.times = nn.ModuleList(_embedding(2 * section.memory, size) for _ in range(sets))
        self.between = None if self._adjacent else nn.Linear(size, size, bias=False)
        self.dropout = nn.Dropout(section.dropout)
        self.head = answers.head(size)

    def hopped(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """u after the last hop (batch, d), and p of every hop (batch, hops, time − 1) over the sentences.

        Args:
            inputs: (batch, time, words) ids; the last row of each length is the question.
            lengths: (batch,) ≥ 1: sentences and the question.
        """
        last = (lengths - 1).clamp_min(0)
        question = inputs.gather(1, last[:, None, None].expand(-1, -1, inputs.shape[2]))
        sentences = inputs[:, :-1]
        behind = last[:, None] - 1 - torch.arange(sentences.shape[1], device=inputs.device)  # 0: the latest sentence
        there = (behind >= 0) & (behind < self.places)
        age = behind.clamp(0, self.places - 1)
        if self.training and self._noise:
            later = torch.rand_like(age, dtype=torch.float32).lt(self._noise) & there
            age = age + later.flip(1).cumsum(1).flip(1)
        u = self._encoded(0, question)[:, 0]
        weights = []
        for hop in range(self.hops):
            looked, read = (hop, hop + 1) if self._adjacent else (0, 1)
            m, c = (self._encoded(k, sentences) + self.times[k](age) for k in (looked, read))
            scores = (m @ u[..., None]).squeeze(-1).masked_fill(~there, float("-inf"))
            p = scores.softmax(-1).nan_to_num(0.0)  # a question without a story reads nothing
            u = (u if self.between is None else self.between(u)) + (p[:, None] @ c)[:, 0]
            weights.append(p)
        return u, torch.stack(weights, 1)

    def answered(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each answer (batch, answers), and what each hop reads (batch, hops, time − 1)."""
        u, weights = self.hopped(inputs, lengths)
        return self.log_probs(self.head.logits(u)), weights  # type: ignore[operator]

    def logits(self, inputs: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """The logits (batch, …), before the temperature; `own` is not read."""
        del own
        u, _ = self.hopped(inputs, lengths)
        return self.head.logits(self.dropout(u))  # type: ignore[no-any-return, operator]

    def pieces(self, inputs: Tensor, lengths: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Not supported: a story is read as a whole."""
        raise NotImplementedError("a memory network reads no pieces")

    def _encoded(self, which: int, rows: Tensor) -> Tensor:
        """Sentences (batch, time, words) as vectors (batch, time, d)."""
        found = self.words[which](rows)
        if not self._by_position:
            return found.sum(2)  # type: ignore[no-any-return]
        count = (rows > 0).sum(-1, keepdim=True).clamp_min(1)  # J
        place = torch.arange(1, rows.shape[2] + 1, device=rows.device) / count  # j/J
        feature = torch.arange(1, found.shape[3] + 1, device=rows.device) / found.shape[3]  # f/d
        counted = (1 - place)[..., None] - feature * (1 - 2 * place)[..., None]
        return (found * counted).sum(2)  # type: ignore[no-any-return]


def _embedding(count: int, size: int, nothing: int | None = None) -> nn.Embedding:
    """A new embedding, whose row `nothing` stays 0."""
    weight = torch.randn(count, size) * INIT
    if nothing is not None:
        weight[nothing] = 0
    return nn.Embedding(count, size, padding_idx=nothing, _weight=weight)

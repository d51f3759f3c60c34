"""Softmaxes over large vocabularies that are trained on a few drawn classes, and measured exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads.alias_method import Proposal
from everstep.heads.linear_head import LinearHead


class DrawnScores(NamedTuple):
    """What a step of training sees of the vocabulary.

    Attributes:
        wanted: (n,) scores s of the targets.
        others: (n, k) scores of the k classes drawn, the same for all rows.
        log_kq: (k,) log(k q) of these, the expected number of their draws.
        of_wanted: (n,) log(k q) of the targets.
        hits: (n, k), where a drawn class is the target.
    """

    wanted: Tensor
    others: Tensor
    log_kq: Tensor
    of_wanted: Tensor
    hits: Tensor

    def log_z(self) -> Tensor:
        """log Ẑ, (n,), Ẑ = e^{s_y} + Σ_{j ≠ y} e^{s_j} / (k q_j), whose expectation is Z = Σ_k e^{s_k}.

        By Jensen's inequality E log Ẑ ≤ log Z; the difference falls as 1/k.
        """
        others = (self.others - self.log_kq).masked_fill(self.hits, -torch.inf)
        return torch.cat([self.wanted[:, None], others], 1).logsumexp(1)


class SamplingHead(LinearHead):
    """Base class: p(k | y) = softmax(s)_k with s = W y + b; training draws k classes from q, the same for all steps.

    `loss` and `predict` are exact. In training, `objective` reports −s_y + log Ẑ, an estimate (`DrawnScores.log_z`).

    Args:
        input_size: features D of y.
        classes: K.
        samples: k, the number of classes drawn for a batch, with replacement.
        power: α of the proposal q ∝ count^α (`Proposal`); tell `counted` the counts, else q is uniform.
        tied: an embedding's weight (K, E) to use as W; where E ≠ D, a linear layer takes y to E features first.
        sparse: the gradient of `weight` is sparse, with the rows of targets and drawn classes alone. Without it each
            step makes and reads an array of W's size. `fit` then updates these rows alone (`RowwiseAdamW`).

    Parameters: `weight` (K, D or E), initially uniform in ±1/√D; `bias` (K,), which `counted` sets to the logarithm of
    the classes' frequencies, initially −log K. Buffers: those of `proposal`.

    Raises:
        ValueError: fewer than one sample, or a tied weight or a power that does not fit.
    """

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        samples: int = 512,
        power: float = 0.75,
        tied: Tensor | None = None,
        sparse: bool = False,
    ):
        super().__init__(input_size, classes, tied)
        if samples < 1:
            raise ValueError(f"{type(self).__name__}: expected at least one sample, got {samples}")
        self.samples, self.sparse = samples, sparse
        self.proposal = Proposal(classes, power)
        self.counted(torch.ones(classes, device=self.proposal.kept.device))

    @torch.no_grad()
    def counted(self, counts: Tensor) -> None:
        """Take the classes' counts (K,) in the training data, for the proposal and the bias."""
        if counts.is_meta:
            return
        self.proposal.counted(counts)
        often = counts.double().clamp_min(1)
        self.bias.copy_((often / often.sum()).log())

    def drawn(self, ys: Tensor, target: Tensor) -> DrawnScores:
        """Draw k classes for outputs (n, D) and targets (n,), and score them."""
        n, drawn = len(target), self.proposal.sample(self.samples)
        ids = torch.cat([target, drawn])
        rows = F.embedding(ids, self.weight, sparse=self.sparse)
        bias = self.bias.index_select(0, ids)
        ys = self.joined(ys.to(self.weight.dtype))  # half precision outside of autocast
        wanted = (ys * rows[:n]).sum(-1) + bias[:n]
        others = torch.addmm(bias[n:], ys, rows[n:].T)
        log_kq = self.proposal.log_q[ids] + torch.log(torch.tensor(float(self.samples)))
        return DrawnScores(wanted, others, log_kq[n:], log_kq[:n], drawn == target[:, None])

    def learned(self, ys: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss, and the estimate of −log p(target | y); (n,) each, in nats."""
        with torch.autocast(ys.device.type, enabled=False):
            drawn = self.drawn(ys, target)
            return self.sampled_loss(drawn), (drawn.log_z() - drawn.wanted).detach()

    def sampled_loss(self, drawn: DrawnScores) -> Tensor:
        """The training loss of each row, (n,)."""
        raise NotImplementedError(f"{type(self).__name__} has no sampled_loss")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, samples={self.samples}"


class SampledSoftmax(SamplingHead):
    """Importance sampling of the softmax's normaliser (Bengio & Senécal 2008; Jean 2015).

    Loss: −s_y + log(e^{s_y} + Σ_{j drawn, j ≠ y} e^{s_j} / (k q_j)). The normaliser is unbiased, its logarithm is not:
    the gradient's bias falls as 1/k, and is the smaller the nearer q is to the model's own distribution (Blanc & Rendle
    2018).

    >>> head = SampledSoftmax(8, 1000, samples=20)
    >>> ys, target = torch.zeros(2, 7, 8), torch.zeros(2, 7, dtype=torch.int64)
    >>> head.objective(ys, target)[0].shape, head.predict(ys).shape
    (torch.Size([2]), torch.Size([2, 7, 1000]))

    Arguments, parameters, errors: `SamplingHead`.

    Known limit: with few samples the perplexity is worse than that of the full softmax; see docs/vocabularies.md.
    """

    def sampled_loss(self, drawn: DrawnScores) -> Tensor:
        """−s_y + log Ẑ."""
        return drawn.log_z() - drawn.wanted


class NCE(SamplingHead):
    """Noise-contrastive estimation (Gutmann & Hyvärinen 2010; Mnih & Teh 2012): tell targets from k draws of noise q.

    Loss: −log σ(Δ_y) − Σ_{j drawn} log σ(−Δ_j) with Δ_j = s_j − log(k q_j), so that e^{s_j} itself learns to be p:
    log Z → 0 for every context (self-normalisation). Its expectation is the loss with all classes, weighted by k q_j;
    for k → ∞ its gradient is that of −log p.

    >>> head = NCE(8, 1000, samples=20)
    >>> head.log_z(torch.zeros(1, 8)).abs().item() < 1e-5
    True

    Arguments, parameters, errors: `SamplingHead`. Larger k cost the gradient's scale: the loss sums over k draws.

    Known limit: −s_y alone is a log-probability only as far as log Z is 0; `log_z` measures it, and `loss` and
    `predict` always normalise.
    """

    def sampled_loss(self, drawn: DrawnScores) -> Tensor:
        """The cross-entropy of the classifier that tells targets from noise."""
        of_noise = F.softplus(drawn.others - drawn.log_kq).sum(1)
        return F.softplus(drawn.of_wanted - drawn.wanted) + of_noise

    def log_z(self, ys: Tensor) -> Tensor:
        """log Σ_k e^{s_k} of outputs (…, D): (…), the error of self-normalisation in nats."""
        return self.logits(ys).float().logsumexp(-1)


class BlackOut(SamplingHead):
    """BlackOut (Ji 2015): a softmax over the target and k drawn classes, weighted by 1/q, trained to tell them apart.

    p̃_j = e^{s_j} / q_j, divided by the sum over target y and drawn classes S ∌ y; loss: −log p̃_y −
    Σ_{j ∈ S} log(1 − p̃_j). Draws that are the target are left out. 1 − p̃ is taken as 1 − (1 − 10⁻⁶) p̃, so that a
    class that is wrongly certain still has a gradient.

    >>> head = BlackOut(8, 1000, samples=20)
    >>> head.objective(torch.zeros(2, 7, 8), torch.zeros(2, 7, dtype=torch.int64))[1].shape
    torch.Size([2])

    Arguments, parameters, errors: `SamplingHead`. The paper takes α within [0.1, 0.5] for large vocabularies.

    Known limit: its gradient is not that of the likelihood for any k. Where the draws cover the vocabulary, frequent
    words come out too likely: of 7 words, the most frequent gets 0.57 instead of 0.40 with 40 draws, 0.41 with one.
    """

    def sampled_loss(self, drawn: DrawnScores) -> Tensor:
        """The discriminative loss."""
        others = (drawn.others - drawn.log_kq).masked_fill(drawn.hits, -torch.inf)
        log_p = torch.cat([(drawn.wanted - drawn.of_wanted)[:, None], others], 1).log_softmax(1)
        return -log_p[:, 0] - torch.log1p(-(1 - 1e-6) * log_p[:, 1:].exp()).sum(1)

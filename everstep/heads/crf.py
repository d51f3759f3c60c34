"""Tags that depend on their neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.arguments import check_lengths
from everstep.cell import check_size
from everstep.heads import chain
from everstep.heads.chain import NEVER, Chain, ChainScore
from everstep.heads.head import Head
from everstep.native.plain_memory import watched
from everstep.state import valid


class CRF(Head):
    """A linear-chain conditional random field: one distribution over whole sequences of K tags.

    p(k_1 … k_T | y) = exp(s(k)) / Σ_k' exp(s(k')), with the sum over all Kᵀ sequences, and

        s(k) = a_{k_1} + Σ_t e_{t, k_t} + Σ_{t>1} A_{k_{t-1}, k_t} + b_{k_T},   e_t = W y_t + c

    with emission scores e of each step, transition scores A (from, to), and scores a and b of the first and the last
    tag (Lafferty, McCallum & Pereira 2001, "Conditional random fields"; on top of a recurrent network: Huang, Xu & Yu
    2015). A sequence without steps has probability 1.

    >>> head = CRF(8, 3)
    >>> ys, lengths = torch.zeros(2, 7, 8), torch.tensor([7, 0])
    >>> head.loss(ys, torch.zeros(2, 7, dtype=torch.int64), lengths).shape
    torch.Size([2])
    >>> head.predict(ys, lengths).shape, head.marginals(ys, lengths).shape
    (torch.Size([2, 7]), torch.Size([2, 7, 3]))

    Sequences that a tag scheme forbids have probability exactly 0 and are never predicted. Here tag 2 (inside) may
    follow only tag 1 (begin) or itself, and may not come first:

    >>> follows, first = torch.ones(3, 3, dtype=torch.bool), torch.tensor([True, True, False])
    >>> follows[0, 2] = False
    >>> head = CRF(None, 3, allowed=(follows, first, torch.ones(3, dtype=torch.bool)))
    >>> head.predict(torch.tensor([[[0.0, 0.0, 9.0], [2.0, 0.0, 9.0]]]))
    tensor([[1, 2]])

    Args:
        input_size: features D of y; if None, ys are the emission scores themselves, (batch, time, K).
        tags: K.
        allowed: bool masks of the allowed transitions (K, K) from row to column, of the first tags (K,) and of the last
            tags (K,); None allows all.

    Parameters: `linear` (W and c, as in `torch.nn.Linear`; None without input_size), `transitions` (K, K), `start` (K,)
    and `end` (K,), initially zero, which makes it a softmax at each step.

    On a CPU with a C++ compiler the recursions are one compiled pass over each row, otherwise loops of PyTorch
    operations: a step takes K exponentials and a product, or K² exponentials where scores are too far apart. They run
    in float32 at least, also under autocast. Second derivatives use PyTorch operations.

    Known limits: `nbest` is a loop of PyTorch operations. There are lengths but no mask: remove steps without a tag
    (a transformer's first token, later pieces of a word) from ys beforehand.

    Raises:
        ValueError, TypeError: sizes below 1, or masks of another shape or dtype; in the methods, arguments of another
            shape, a target that is not a tag or is forbidden, or a row whose length no allowed sequence has.
    """

    targets = "class"
    allowed_transitions: Tensor | None
    allowed_start: Tensor | None
    allowed_end: Tensor | None

    def __init__(self, input_size: int | None, tags: int, *, allowed: tuple[Tensor, Tensor, Tensor] | None = None):
        super().__init__()
        self.tags = check_size(self, "tags", tags)
        self.input_size = self.tags if input_size is None else check_size(self, "input_size", input_size)
        self.linear = None if input_size is None else nn.Linear(self.input_size, self.tags)
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        self.start, self.end = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))
        shapes = {"allowed_transitions": (tags, tags), "allowed_start": (tags,), "allowed_end": (tags,)}
        for name, mask in zip(shapes, allowed or (None, None, None), strict=True):
            if mask is not None and (mask.shape != shapes[name] or mask.dtype != torch.bool):
                raise ValueError(
                    f"CRF: allowed should be bool masks of shapes {', '.join(map(str, shapes.values()))}, but one is "
                    f"{mask.dtype} of shape {tuple(mask.shape)}"
                )
            self.register_buffer(name, mask)

    def scores(self, ys: Tensor) -> Tensor:
        """The emission scores e, (batch, time, K), in float32 at least."""
        if ys.dim() != 3 or ys.shape[2] != self.input_size:
            raise ValueError(f"CRF: ys should be (batch, time, {self.input_size}), but have shape {tuple(ys.shape)}")
        # on 2-D input the bias is added within the product
        scores = ys if self.linear is None else self.linear(ys.flatten(0, 1)).view(*ys.shape[:2], self.tags)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def of_scores(self) -> CRF:
        """The same chain without `linear`: it reads emission scores, such as `scores` gives, and shares its parameters.

        >>> head, ys = CRF(8, 3), torch.randn(1, 5, 8)
        >>> biased = head.scores(ys) - torch.tensor([0.5, 0.0, 0.0])  # tag 0 is the less likely by e^−0.5 at each step
        >>> head.of_scores().predict(biased).shape
        torch.Size([1, 5])
        """
        masks = self.allowed_transitions, self.allowed_start, self.allowed_end
        chain = CRF(None, self.tags, allowed=None if masks[0] is None else masks)  # type: ignore[arg-type]
        chain.transitions, chain.start, chain.end = self.transitions, self.start, self.end
        return chain

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−log p(target | y) of every row, (batch,), nats. Padding in target is ignored."""
        scores, lengths = self._given(ys, lengths)
        target = self._tags(target, ys, lengths)
        with torch.autocast(scores.device.type, enabled=False):
            parts = self._chain(scores)
            nats = chain.nats(scores, parts, lengths, target)
            if self.allowed_start is not None and watched() is None and nats.isinf().any():
                _check_allowed(chain.score(scores, parts, target[..., None], lengths), target, lengths)
            return nats

    @torch.no_grad()
    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The most likely sequence of every row (Viterbi 1967): (batch, time) int64, zeros beyond its length."""
        scores, lengths = self._given(ys, lengths)
        with torch.autocast(scores.device.type, enabled=False):
            parts = self._chain(scores)
            tags = chain.best(scores, parts, lengths)
            if self.allowed_start is not None:
                found = chain.score(scores, parts, tags[..., None], lengths)
                _check_possible(found.possible()[:, 0], scores, lengths)
        return (tags if lengths is None else _valid(tags, lengths))[:, : ys.shape[1]]

    @torch.no_grad()
    def nbest(self, ys: Tensor, n: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The n most likely sequences of every row, the best first, and log p of each.

        Returns:
            (batch, n, time) int64, zeros beyond a row's length, and (batch, n) nats. If a row has fewer than n
            sequences, the rest have log p = −∞ and are to be ignored.
        """
        check_size(self, "n", n)
        scores, lengths = self._given(ys, lengths)
        with torch.autocast(scores.device.type, enabled=False):
            parts = self._chain(scores)
            tags, there = chain.n_best(scores, parts, n, lengths)
            found = chain.score(scores, parts, tags, lengths)
            first = ChainScore(found.steps[..., :1], found.last[:, :1])
            log_p = found.minus(first) - chain.nats(scores, parts, lengths, tags[..., 0])[:, None]
            log_p = torch.where(there & found.possible(), log_p, -torch.inf)
        if lengths is not None:  # there is only one sequence without steps
            log_p[:, 1:][lengths == 0] = -torch.inf
        tags = tags.transpose(1, 2)
        tags = tags if lengths is None else torch.where(valid(lengths, tags.shape[2])[:, None], tags, 0)
        return tags[..., : ys.shape[1]], log_p

    def marginals(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """p(k_t = k | y) of every tag at every step, (batch, time, K), zeros beyond a row's length.

        They are the gradient of log Σ exp(s) with respect to the scores e, and are differentiable themselves.
        """
        keep = torch.is_grad_enabled()
        scores, lengths = self._given(ys, lengths)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(scores.device.type, enabled=False):
            if not (keep and scores.requires_grad):
                scores = scores.detach().clone().requires_grad_()
            parts = Chain(*[part.clone() if part.is_inference() else part for part in self._chain(scores)])
            log_sum = chain.nats(scores, parts, lengths)
            if self.allowed_start is not None:
                _check_possible(log_sum > -torch.inf, scores, lengths)
            (found,) = torch.autograd.grad(log_sum.sum(), scores, create_graph=keep)
        return found[:, : ys.shape[1]]

    def _given(self, ys: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The scores and lengths; an empty sequence becomes one step of padding."""
        scores = self.scores(ys)
        if lengths is not None and watched() is None:
            check_lengths("CRF", ys, lengths)
        if scores.shape[1] == 0:
            return F.pad(scores, (0, 0, 0, 1)), torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        return scores, lengths

    def _tags(self, target: Tensor, ys: Tensor, lengths: Tensor | None) -> Tensor:
        """The target with zeros as padding."""
        if target.shape != ys.shape[:2] or target.is_floating_point():
            came = f"{target.dtype} of shape {tuple(target.shape)}"
            raise ValueError(f"CRF: target should be whole numbers of shape {tuple(ys.shape[:2])}, but is {came}")
        target = target.long() if ys.shape[1] else F.pad(target.long(), (0, 1))
        target = target if lengths is None else _valid(target, lengths)
        wrong = (target < 0) | (target >= self.tags)
        if watched() is None and wrong.any():
            row, step = wrong.nonzero()[0].tolist()
            came = f"{int(target[row, step])} in row {row} at step {step}"
            raise ValueError(f"CRF: target should lie in 0 … {self.tags - 1}, but is {came}")
        return target

    def _chain(self, scores: Tensor) -> Chain:
        """The transition, start and end scores, in the dtype of these scores."""
        parts = [parameter.to(scores.dtype) for parameter in (self.transitions, self.start, self.end)]
        masks = (self.allowed_transitions, self.allowed_start, self.allowed_end)
        return Chain(*[p if m is None else torch.where(m, p, NEVER) for p, m in zip(parts, masks, strict=True)])

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.tags}"


def _valid(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(valid(lengths, values.shape[1]), values, 0)


def _check_allowed(gold: ChainScore, target: Tensor, lengths: Tensor | None) -> None:
    """Raise if the target contains anything forbidden."""
    possible = gold.possible()[:, 0]
    if possible.all():
        return
    row = int(possible.logical_not().nonzero()[0])
    tags = target[row, : None if lengths is None else int(lengths[row])].tolist()
    steps = (gold.steps[row, :, 0] <= NEVER / 2).nonzero().flatten().tolist()
    where = f"ends with tag {tags[-1]}"
    if steps:
        step = steps[0]
        where = f"has tag {tags[step]} at step {step}, " + (f"after tag {tags[step - 1]}" if step else "the first")
    raise ValueError(f"CRF: target: row {row} {where}, which `allowed` forbids: correct the tags, or allow it")


def _check_possible(possible: Tensor, scores: Tensor, lengths: Tensor | None) -> None:
    if not possible.all():
        row = int(possible.logical_not().nonzero()[0])
        length = scores.shape[1] if lengths is None else int(lengths[row])
        raise ValueError(f"CRF: row {row} has {length} steps, but `allowed` has no sequence of so many tags")

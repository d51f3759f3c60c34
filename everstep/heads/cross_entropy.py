"""Cross-entropy of softmax(W y + b) with a single array of the size of the logits, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads import compiled_softmax
from everstep.native.memory_pool import empty
from everstep.native.plain_memory import plain, watched


class CrossEntropy(torch.autograd.Function):
    """−(1 − ε) log p_k − ε · mean_j log p_j of n rows, and −log p_k; p = softmax(W y + b), k the row's class.

    ∂/∂logits = p − (1 − ε) onehot_k − ε / K overwrites the logits in place. Backward is two matrix products of that
    array, with W and with y; the gradient of the loss scales the n rows of y.

    `F.linear` and `F.cross_entropy` instead keep the logits and log p, and allocate two more such arrays in backward.
    """

    @staticmethod
    def forward(ctx: Any, ys: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float) -> Any:
        """y (n, D), W (K, D), b (K,), targets (n,) int64 and ε to (n,) and (n,) nats; the second has no gradient."""
        logits = torch.mm(ys, weight.t(), out=empty(ys, len(ys), len(weight)))
        compiled = compiled_softmax.available(logits)
        loss, nats = (compiled_softmax.slopes if compiled else _slopes)(logits, bias, target, smoothing)
        ctx.save_for_backward(ys, weight, bias, target, logits)
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(nats)
        return loss, nats

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        """The gradients of y, W and b. For second derivatives it differentiates the plain formula instead."""
        gradient = given[0]
        ys, weight, bias, target, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = [one for one, needed in zip((ys, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            logits = F.linear(ys, weight, bias)
            loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=ctx.smoothing)
            found = iter(torch.autograd.grad(loss, inputs, gradient, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None
        of_ys = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_ys = (slopes @ weight).mul_(gradient[:, None])
        if ctx.needs_input_grad[1]:
            of_weight = slopes.t() @ (ys * gradient[:, None])
        if ctx.needs_input_grad[2]:
            of_bias = gradient @ slopes
        return of_ys, of_weight, of_bias, None, None


def _slopes(logits: Tensor, bias: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """As `compiled_softmax.slopes`, by operations of PyTorch."""
    logits += bias
    rows = target[:, None]
    largest, mean = logits.amax(-1, keepdim=True), logits.mean(-1) if smoothing else None
    wanted = logits.gather(1, rows)
    p = torch.softmax(logits, -1, out=logits)
    log_sum = largest - p.amax(-1, keepdim=True).log()  # the largest p is at least 1 / K
    nats = (log_sum - wanted)[:, 0]
    loss = nats.clone() if mean is None else nats + smoothing * (wanted[:, 0] - mean)
    p.scatter_add_(1, rows, torch.full_like(wanted, smoothing - 1))
    if smoothing:
        p -= smoothing / p.shape[1]
    return loss, nats


def cross_entropy(
    ys: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss with label smoothing ε (Szegedy 2016) of each row, and −log p of its class, which has no gradient.

    loss = −(1 − ε) log p_k − ε · mean_j log p_j with p = softmax(W y + b), in nats.

    >>> ys, weight, bias = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)
    >>> cross_entropy(ys, weight, bias, torch.tensor([1, 3]))[0]
    tensor([1.3863, 1.3863])

    Args:
        ys: (n, D) y.
        weight, bias: (K, D) W and (K,) b.
        target: (n,) int64, the class k of each row.
        smoothing: ε.

    Returns:
        (n,) and (n,), in nats.
    """
    loss, plain = CrossEntropy.apply(ys, weight, bias, target, smoothing)
    return loss, plain


def alone(ys: Tensor, weight: Tensor) -> bool:
    """Whether `cross_entropy` may compute: a gradient is wanted, in full precision, and nobody watches operations."""
    cast = torch.is_autocast_enabled(ys.device.type) or ys.dtype not in (torch.float32, torch.float64)
    return torch.is_grad_enabled() and not cast and plain(ys, weight) and watched() is None


def in_one_pass(ys: Tensor, weight: Tensor) -> bool:
    """Whether `compiled_softmax.log_softmax` may compute: no gradient is wanted, and nobody watches operations."""
    cast = torch.is_autocast_enabled(ys.device.type)
    free = not torch.is_grad_enabled() and not cast and plain(ys, weight) and watched() is None
    return free and compiled_softmax.available(ys)


def row_nats(ys: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """−log softmax(W y + b)_target of rows (n, D): (n,), in nats; by `cross_entropy` where it may compute.

    >>> row_nats(torch.zeros(1, 3), torch.zeros(4, 3), torch.zeros(4), torch.tensor([2]))
    tensor([1.3863])
    """
    if alone(ys, weight):
        return cross_entropy(ys, weight, bias, target)[0]
    return F.cross_entropy(F.linear(ys, weight, bias).float(), target, reduction="none")

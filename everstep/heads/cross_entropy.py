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
        _check(ys, weight, bias, target)
        low = torch.is_autocast_enabled(ys.device.type)
        logits = _product(ys, weight.t(), low, empty(weight, len(ys), len(weight)))
        compiled = compiled_softmax.available(logits)
        loss, nats = (compiled_softmax.slopes if compiled else _slopes)(logits, bias, target, smoothing)
        ctx.save_for_backward(ys, weight, bias, target, logits)
        ctx.smoothing, ctx.low = smoothing, low
        ctx.mark_non_differentiable(nats)
        return loss, nats

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        """The gradients of y, W and b. For second derivatives it differentiates the plain formula instead."""
        gradient = given[0]
        ys, weight, bias, target, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = [one for one, needed in zip((ys, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            logits = F.linear(ys.to(weight.dtype), weight, bias)
            loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=ctx.smoothing)
            found = iter(torch.autograd.grad(loss, inputs, gradient, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None
        of_ys = of_weight = None
        of_bias = gradient @ slopes if ctx.needs_input_grad[2] else None
        if ctx.low:
            slopes = slopes.bfloat16()
        if ctx.needs_input_grad[0]:
            of_ys = (_product(slopes, weight, ctx.low) * gradient[:, None]).to(ys.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = _product(slopes.t(), ys * gradient[:, None], ctx.low)
        return of_ys, of_weight, of_bias, None, None


def _check(ys: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> None:
    """Raise ValueError unless b and the targets are as the compiled loop reads them."""
    for name, given, size, dtype in (
        ("bias", bias, len(weight), weight.dtype),
        ("target", target, len(ys), torch.int64),
    ):
        if given.shape != (size,) or given.dtype != dtype:
            got = f"{tuple(given.shape)} of {given.dtype}"
            raise ValueError(f"cross_entropy: expected {name} ({size},) of {dtype}; got {got}")


def _product(x: Tensor, w: Tensor, low: bool, out: Tensor | None = None) -> Tensor:
    """x · w in the dtype of float32 or float64 factors; `low`: of factors in bfloat16, in float32."""
    if low:
        found = torch.mm(x.bfloat16(), w.bfloat16())
        return found.float() if out is None else out.copy_(found)
    return torch.mm(x, w) if out is None else torch.mm(x, w, out=out)


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

    Raises:
        ValueError: bias or target of another shape or dtype.
    """
    loss, plain = CrossEntropy.apply(ys, weight, bias, target, smoothing)
    return loss, plain


def alone(ys: Tensor, weight: Tensor) -> bool:
    """Whether `cross_entropy` may compute: a gradient is wanted, and nobody watches operations.

    Under autocast it computes on a CPU with factors in bfloat16, as `F.linear` would.
    """
    fits = ys.dtype in (torch.float32, torch.float64)
    if torch.is_autocast_enabled(ys.device.type):
        low = ys.is_cpu and torch.get_autocast_dtype("cpu") == torch.bfloat16 and weight.dtype == torch.float32
        fits = low and ys.dtype in (torch.float32, torch.bfloat16)
    return torch.is_grad_enabled() and fits and plain(ys, weight) and watched() is None


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

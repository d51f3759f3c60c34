"""Decompositions of operations into simpler ones, for arguments that are not known before the loop.

Each has the value and the derivative of PyTorch's operation, also at corners. It raises `NotImplementedError` for
unsupported arguments, with a message that continues the name of the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_RUNS = 64
"""Most slices in which an index is applied."""


def _dims(x: Tensor, dim: Any) -> list[int]:
    """The dimensions `dim`, non-negative; None or empty means all."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(x.dim()))
    return [d % max(x.dim(), 1) for d in ([dim] if isinstance(dim, int) else dim)]


def _cut(x: Tensor, dim: int, start: int, end: int, step: int = 1) -> Tensor:
    found: Tensor = torch.ops.aten.slice(x, dim, start, end, step)
    return found


def _root(x: Tensor) -> Tensor:
    """√x, with the derivative 0 at 0."""
    nothing = x == 0
    return torch.where(nothing, 0.0, torch.sqrt(torch.where(nothing, 1.0, x)))


def _numbers(x: Tensor, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    if not x.is_floating_point():
        raise NotImplementedError(f"of {x.dtype}; make numbers like x of it first")
    return x


def _norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims, x = _dims(x, dim), _numbers(x, dtype)
    if order == 2:
        return _root((x * x).sum(dims, keepdim))
    if order == 1:
        return x.abs().sum(dims, keepdim)
    if order == math.inf:
        return x.abs().amax(dims, keepdim)
    raise NotImplementedError(f"of order {order}; the engine knows the orders 1, 2 and infinity")


def _std(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return _root(torch.var(x, _dims(x, dim), correction=1 if correction is None else correction, keepdim=keepdim))


def _nan_to_num(x: Tensor, nan: float | None = None, above: float | None = None, below: float | None = None) -> Tensor:
    most = torch.finfo(x.dtype).max
    x = torch.where(x == math.inf, most if above is None else above, x)
    x = torch.where(x == -math.inf, -most if below is None else below, x)
    return torch.where(x != x, 0.0 if nan is None else nan, x)


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    most = x.detach().amax(dims, True)
    most = torch.where(most.abs() == math.inf, 0.0, most)
    total = torch.log(torch.exp(x - most).sum(dims, keepdim))
    return total + (most if keepdim else most.sum(dims))  # one element each


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    apart = torch.where(a == b, 0.0, a - b)  # also for two infinities
    return torch.maximum(a, b) + torch.log1p(torch.exp(-apart.abs()))


def _safe_softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    lost = x.amax([dim], True) == -math.inf
    return torch.where(lost, 0.0, torch.ops.aten._softmax(torch.where(lost, 0.0, x), dim, False))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    if dropout:
        raise NotImplementedError("with dropout; a mask belongs to the sequence: see VariationalDropout, Zoneout")
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = torch.where(seen, scores, -math.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    attended = torch.einsum("bhqk,bhkd->bhqd", _safe_softmax(scores, -1), value)
    return attended, _logsumexp(scores, -1)


def _below(x: Tensor, bound: float) -> Tensor:
    return torch.where(x < -bound, x + bound, torch.where(x != x, x, 0.0))


def _hardswish(x: Tensor) -> Tensor:
    inside = torch.where(x.abs() < 3, x, 0.0)  # so that the branch not taken has no infinite gradient
    return torch.where(x < 3, torch.where(x > -3, inside * ((inside + 3) * (1 / 6)), 0.0), x)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    return _cut(x, dim, 0, half) * torch.sigmoid(_cut(x, dim, half, 2 * half))


def _roll(x: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (shifts, dims))
    if not dims:
        raise NotImplementedError("without a dimension, across the batch")
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        at = (size - shift) % size if size else 0
        x = torch.cat([_cut(x, dim, at, size), _cut(x, dim, 0, at)], dim) if at else x
    return x


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    sizes = [1] * (len(repeats) - x.dim()) + list(x.shape)
    pairs = list(zip(repeats, sizes, strict=True))
    apart = [n for times, size in pairs for n in ((size,) if times == 1 else (1, size))]
    often = [n for times, size in pairs for n in ((size,) if times == 1 else (times, size))]
    return x.reshape(apart).expand(often).clone().reshape([times * size for times, size in pairs])


def _pad(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    for number in range(len(pad) // 2):
        dim, size = x.dim() - 1 - number, x.shape[x.dim() - 1 - number]
        before, after = pad[2 * number], pad[2 * number + 1]
        x = _cut(x, dim, max(-before, 0), size + min(after, 0))
        parts = [(before, 0), (0, 1), (after, 0)]
        filled = [
            x if itself else x.new_full((*x.shape[:dim], many, *x.shape[dim + 1 :]), value)
            for many, itself in parts
            if itself or many > 0
        ]
        x = torch.cat(filled, dim) if len(filled) > 1 else x
    return x


def _nothing(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)


def _triangle(keep: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def masked(x: Tensor, diagonal: int = 0) -> Tensor:
        kept = keep(torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device), diagonal)
        return torch.where(kept, x, _nothing(x))

    return masked


def _diag_embed(x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    if offset or (dim1 % (x.dim() + 1), dim2 % (x.dim() + 1)) != (x.dim() - 1, x.dim()):
        raise NotImplementedError("off the last two dimensions' diagonal")
    diagonal = torch.eye(x.shape[-1], device=x.device) == 1
    return torch.where(diagonal, x.unsqueeze(-1), _nothing(x))


def _cumulative(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def along(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
        x = _numbers(x, dtype)
        size, shift = x.shape[dim], 1
        while shift < size:
            moved = join(_cut(x, dim, shift, size), _cut(x, dim, 0, size - shift))
            x = torch.cat([_cut(x, dim, 0, shift), moved], dim)
            shift *= 2
        return x

    return along


def _prod(x: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    if dim is None:
        raise NotImplementedError("of all numbers, across the batch")
    x = _numbers(x, dtype)
    while x.shape[dim] > 1:
        half, size = x.shape[dim] // 2, x.shape[dim]
        rest = [_cut(x, dim, 2 * half, size)] if size % 2 else []
        x = torch.cat([_cut(x, dim, 0, half) * _cut(x, dim, half, 2 * half), *rest], dim)
    return x if keepdim else x.squeeze(dim)


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    inner: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = x.reshape(batch, groups, -1)
    variance, mean = torch.var_mean(parts, -1, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    y = ((parts - mean) * scale).reshape(x.shape)
    shape = (1, channels, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape), mean.squeeze(-1), scale.squeeze(-1)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if training or mean is None or variance is None:
        raise NotImplementedError("of the batch's own statistics, which set rows against one another: see BatchNorm")
    shape = (1, len(mean), *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + eps)
    y = (x - mean.reshape(shape)) * scale.reshape(shape)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape), x.new_empty(0), x.new_empty(0)


def _indexed(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].dim() != 1:
        raise NotImplementedError("of more than one list of places")
    return _selected(x, *given[0])


def _selected(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Elements at constant indices, as few slices with a constant step."""
    if index.dim() != 1:
        raise NotImplementedError("of one place or a table of places")
    if type(index) is not Tensor or index.dtype not in (torch.int64, torch.bool):
        raise NotImplementedError("at places that may change; write them in the step, as a list")
    with torch.utils._python_dispatch._disable_current_modes():
        given = (index.nonzero()[:, 0] if index.dtype == torch.bool else index).tolist()
    size = x.shape[dim]
    if beyond := [place for place in given if not -size <= place < size]:
        raise IndexError(f"index {beyond[0]} is out of bounds for dimension {dim} with size {size}")
    places = [place % size for place in given]
    parts = [_run(x, dim, run) for run in _runs(places)]
    if len(parts) > _RUNS:
        raise NotImplementedError(f"at places in more than {_RUNS} runs")
    return torch.cat(parts, dim) if len(parts) != 1 else parts[0]


def _runs(places: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for place in places:
        last = runs[-1] if runs else []
        if last and (len(last) == 1 or place - last[-1] == last[1] - last[0]) and place != last[-1]:
            last.append(place)
        else:
            runs.append([place])
    return runs


def _run(x: Tensor, dim: int, run: list[int]) -> Tensor:
    step = run[1] - run[0] if len(run) > 1 else 1
    part = _cut(x, dim, min(run), max(run) + 1, abs(step))
    return part if step > 0 else part.flip(dim)


DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "mv": lambda matrix, vector: (matrix * vector).sum(-1),
    "fill": lambda x, value: torch.full_like(x, value),
    "zero": torch.zeros_like,
    "copy": lambda x, source, blocking=False: source.to(x.dtype).expand(x.shape).clone(),
    "masked_fill": lambda x, mask, value: torch.where(mask, value, x),
    "glu": _glu,
    "addcdiv": lambda x, a, b, *, value=1: x + value * (a / b),
    "exp2": lambda x: torch.exp(x * math.log(2)),
    "log2": lambda x: torch.log(x) * (1 / math.log(2)),
    "log10": lambda x: torch.log(x) * (1 / math.log(10)),
    "cosh": lambda x: 0.5 * (torch.exp(x) + torch.exp(-x)),
    "tan": lambda x: torch.sin(x) / torch.cos(x),
    "frac": lambda x: x - torch.trunc(x.detach()),
    "hypot": lambda a, b: torch.sqrt(a * a + b * b),
    "mish": lambda x: x * torch.tanh(torch.nn.functional.softplus(x)),
    "hardswish": _hardswish,
    "hardshrink": lambda x, bound=0.5: torch.where(x.abs() <= bound, 0.0, x),
    "softshrink": lambda x, bound=0.5: torch.where(x > bound, x - bound, _below(x, bound)),
    "threshold": lambda x, bound, value: torch.where(x <= bound, value, x),
    "nan_to_num": _nan_to_num,
    "isnan": lambda x: x != x,
    "logaddexp": _logaddexp,
    "logsumexp": _logsumexp,
    "linalg_vector_norm": _norm,
    "std": _std,
    "prod": _prod,
    "cumsum": _cumulative(torch.add),
    "cumprod": _cumulative(torch.mul),
    "_safe_softmax": _safe_softmax,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "stack": lambda tensors, dim=0: torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim),
    "roll": _roll,
    "repeat": _repeat,
    "constant_pad_nd": _pad,
    "tril": _triangle(torch.tril),
    "triu": _triangle(torch.triu),
    "diag_embed": _diag_embed,
    "index": _indexed,
    "index_select": _selected,
}
"""Decompositions by PyTorch's name of the operation."""


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    def turned(x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        return x / (norm + (norm.clamp_min(eps) - norm).detach())  # with the derivative of the norm, as in PyTorch

    x1, x2 = torch.broadcast_tensors(x1, x2)
    similarity: Tensor = (turned(x1) * turned(x2)).sum(dim)
    return similarity


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.cosine_similarity: _cosine_similarity,
    torch.bilinear: _bilinear,
    torch.nn.functional.bilinear: _bilinear,
}
"""Replacements by the function that a step calls."""

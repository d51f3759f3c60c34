"""The recursions of a linear chain in one compiled pass over each row: `native/chain.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from everstep.native.c_tables import Count, Entry, Integers, IntegersOut, Numbers, NumbersOut, int64_array
from everstep.native.kernels import kernels, loops
from everstep.native.memory_pool import empty
from everstep.native.plain_memory import plain, watched

_NAMES = {torch.float32: "f32", torch.float64: "f64"}
_LOOPS = tuple(f"es_chain_{loop}_{numbers}" for loop in ("forward", "backward", "best") for numbers in _NAMES.values())
_VECTOR = 64
"""Bytes of a vector register."""
_SHARE = 1 << 18
"""Number of multiplications above which one more thread pays off."""


_Moves: TypeAlias = Annotated[Entry, "int32_t*"]


class ChainCall(NamedTuple):
    """What a compiled loop reads.

    Attributes:
        batch, time, tags, wide: sizes; `wide`: tags, padded to whole vectors.
        scores, transitions, start, end: (batch, time, tags), (tags, tags), (tags,), (tags,).
        lengths, target: (batch,) and (batch, time), or null: all steps, and log Z.
        state, sums: (batch, time, wide), or null: a, and Σ_i e^(a_i) W_ij, or −1 where it is made of logarithms.
        nats, gradient: (batch,), and the gradient of it.
        by_scores, by_chain: (batch, time, tags), and of each thread (tags + 2, wide): by transitions, start, end.
        best, moves: (batch, time), and of each thread (time, wide): from which tag.
        memory: of each thread (2 tags + 8, wide).
    """

    batch: Count
    time: Count
    tags: Count
    wide: Count
    scores: Numbers
    transitions: Numbers
    start: Numbers
    end: Numbers
    lengths: Integers
    target: Integers
    state: NumbersOut
    sums: NumbersOut
    nats: NumbersOut
    gradient: Numbers
    by_scores: NumbersOut
    by_chain: NumbersOut
    best: IntegersOut
    moves: _Moves
    memory: NumbersOut


_OWN = ("state", "sums", "nats", "gradient", "by_scores", "by_chain", "best", "moves")
"""What only some of the loops read or write."""


def available(*tensors: Tensor | None) -> bool:
    """Whether these are plain CPU tensors, the first of float32 or float64, and there is a compiler."""
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        given[0].dtype in _NAMES
        and all(tensor.is_cpu for tensor in given)
        and plain(*given)
        and watched() is None
        and _library() is not None
    )


def _library() -> ctypes.CDLL | None:
    return loops("chain", ChainCall, _LOOPS, "CRF runs step by step, slowly")


class _Call:
    """The arguments of a compiled loop: scores (batch, time, tags), the chain, and lengths and target or None."""

    def __init__(self, scores: Tensor, chain: tuple[Tensor, ...], lengths: Tensor | None, target: Tensor | None):
        self.scores, self.chain = scores.detach().contiguous(), [part.detach().contiguous() for part in chain]
        self.lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
        self.target = None if target is None else target.contiguous()
        self.batch, self.time, self.tags = scores.shape
        lanes = _VECTOR // scores.itemsize
        self.wide = -(-self.tags // lanes) * lanes
        work = self.batch * self.time * self.tags * self.wide
        self.threads = max(1, min(torch.get_num_threads(), self.batch, work // _SHARE))

    def run(self, loop: str, **own: Tensor | None) -> None:
        """Run `es_chain_LOOP`; `own` are some of `_OWN`."""
        library = _library()
        assert library is not None
        memory = self.scores.new_empty(self.threads, 2 * self.tags + 8, self.wide)
        given = dict(zip(("transitions", "start", "end"), self.chain, strict=True))
        arrays: dict[str, Tensor | None] = {
            "scores": self.scores,
            **given,
            "lengths": self.lengths,
            "target": self.target,
            "memory": memory,
        }
        arrays |= {name: own.get(name) for name in _OWN}
        places = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in arrays.items()}
        table = ChainCall(self.batch, self.time, self.tags, self.wide, **places)
        numbers, dtype = int64_array(table), self.scores.dtype
        kernels(dtype).parallel(getattr(library, f"es_chain_{loop}_{_NAMES[dtype]}"), numbers, self.threads)


class _Nats(torch.autograd.Function):
    """−log p of the target of each row; log Z without a target."""

    @staticmethod
    def forward(ctx: Any, lengths: Tensor | None, target: Tensor | None, again: Any, *given: Tensor) -> Tensor:
        call = _Call(given[0], given[1:], lengths, target)
        kept: list[Tensor | None] = [None, None]
        if any(ctx.needs_input_grad):
            kept = [empty(call.scores, call.batch, call.time, call.wide) for _ in kept]
        nats = call.scores.new_empty(call.batch)
        call.run("forward", state=kept[0], sums=kept[1], nats=nats)
        ctx.again, ctx.lengths, ctx.target = again, lengths, target  # integers made in inference mode cannot be saved
        ctx.save_for_backward(*kept, *given)
        return nats

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        state, sums, *given = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            wanted = [tensor for tensor in given if tensor.requires_grad]
            found = iter(
                torch.autograd.grad(ctx.again(*given), wanted, gradient, create_graph=True, materialize_grads=True)
            )
            return None, None, None, *[next(found) if tensor.requires_grad else None for tensor in given]
        call = _Call(given[0], tuple(given[1:]), ctx.lengths, ctx.target)
        by_scores = empty(call.scores, *call.scores.shape)
        by_chain = call.scores.new_empty(call.threads, call.tags + 2, call.wide)
        own = {"gradient": gradient.contiguous(), "by_scores": by_scores, "by_chain": by_chain}
        call.run("backward", state=state, sums=sums, **own)
        total = by_chain.sum(0)[:, : call.tags]
        return None, None, None, by_scores, total[:-2], total[-2], total[-1]


def nats(
    scores: Tensor,
    chain: tuple[Tensor, ...],
    lengths: Tensor | None,
    target: Tensor | None,
    again: Callable[..., Tensor],
) -> Tensor:
    """−log p of the target (batch, time), or log Z if it is None: (batch,).

    `again` computes the same from the scores and the three parts of the chain in PyTorch, for second derivatives.
    """
    return _Nats.apply(lengths, target, again, scores, *chain)  # type: ignore[no-any-return]


def best(scores: Tensor, chain: tuple[Tensor, ...], lengths: Tensor | None) -> Tensor:
    """The best sequence of each row, (batch, time) int64, zeros beyond its length."""
    call = _Call(scores, chain, lengths, None)
    found = torch.empty(scores.shape[:2], dtype=torch.int64, device="cpu")
    moves = torch.empty((call.threads, call.time, call.wide), dtype=torch.int32, device="cpu")
    call.run("best", best=found, moves=moves)
    return found

"""Gradients without keeping what they need: run, forget, and run again in backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from everstep.state import State, leaves, map_state, unflatten

Piece = Callable[[Any, Any, State], tuple[Any, State]]
"""`piece(model, inputs, state)` gives what comes out and the new state; all are nests of tensors (inputs also None)."""


def recomputed(piece: Piece, model: nn.Module, inputs: Any, state: State) -> tuple[Any, State]:
    """`piece(model, inputs, state)`, of which autograd keeps the arguments alone; backward runs it again.

    Both runs are the same code on the same numbers, random generators of torch, autocast and buffers included, so
    that the second gives the bits of the first. Without gradients, and inside of torch.func transforms, the piece just
    runs.

    Args:
        piece: what to run. It reads no tensor that needs gradients besides those of its arguments.
        model: its parameters get gradients, also those that stand in for them at this moment
            (`torch.func.functional_call`).
        inputs: a nest of tensors and None.
        state: likewise.
    """
    if not torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
        return piece(model, inputs, state)
    names: dict[str, int] = {}  # a tied parameter has several
    places: dict[int, int] = {}
    tensors: list[Tensor] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = places.setdefault(id(parameter), len(tensors))
        if names[name] == len(tensors):
            tensors.append(parameter)

    def place(leaf: Tensor | None) -> int | None:
        if leaf is None:
            return None
        tensors.append(leaf)
        return len(tensors) - 1

    again = _Again(piece, model, names, map_state(place, (inputs, state)))
    found = _Recomputed.apply(again, *tensors)
    out, new = unflatten(again.nest, found)
    return out, new


def steps_of_piece(time: int) -> int:
    """50 ∛T or a little less, so that pieces are of one size and use the same memory.

    The states between pieces would ask for √T, but a step keeps far more than a state, and a piece has a fixed cost:
    so short sequences have few pieces, and what long ones keep grows with less than √T.
    """
    pieces = max(1, math.ceil(time / (50 * time ** (1 / 3)))) if time else 1
    return max(1, math.ceil(time / pieces))


def undisturbed(piece: Piece, model: nn.Module, inputs: Any, state: State) -> tuple[Any, State]:
    """`piece(model, inputs, state)` with copies of the buffers, so that those of the model do not move."""
    buffers = {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}
    return torch.func.functional_call(_Caller(piece, model), buffers, (inputs, state))  # type: ignore[no-any-return]


class _Caller(nn.Module):
    """A piece as a module, for `functional_call`."""

    def __init__(self, piece: Piece, model: nn.Module):
        super().__init__()
        self.piece, self.model = piece, model

    def forward(self, inputs: Any, state: State) -> tuple[Any, State]:
        return self.piece(self.model, inputs, state)


class _Again:
    """One piece, and what has to be as it was when it is run again."""

    nest: Any

    def __init__(self, piece: Piece, model: nn.Module, names: dict[str, int], places: Any):
        self.piece, self.model, self.names, self.places = piece, model, names, places
        self.buffers: dict[str, Tensor] | None = None
        self.random: _Random | None = None

    def first(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Run, and see which random numbers and which buffers that has moved."""
        self.device = tensors[0].device.type if tensors else "cpu"
        self.autocast = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        random = _Random(tensors)
        held = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in self.model.named_buffers()}
        outs = self._run(tensors, {})
        now = dict(self.model.named_buffers())
        if any(now[name] is not buffer or buffer._version != version for name, (buffer, version, _) in held.items()):
            self.buffers = {name: before for name, (_, _, before) in held.items()}
        if random.moved():
            self.random = random
        return outs

    def second(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run again; buffers that the run changes are copies, which are changed a second time and forgotten."""
        buffers = {} if self.buffers is None else {name: b.clone() for name, b in self.buffers.items()}
        if self.random is None:
            return self._run(tensors, buffers)
        with self.random.restored():
            return self._run(tensors, buffers)

    def _run(self, tensors: Any, buffers: dict[str, Tensor]) -> list[Tensor]:
        inputs, state = map_state(lambda place: None if place is None else tensors[place], self.places)
        given = {name: tensors[place] for name, place in self.names.items()} | buffers
        enabled, dtype = self.autocast
        # no cache of shortened weights: it would live as long as the caller's autocast, once for every piece
        with torch.enable_grad(), torch.autocast(self.device, dtype, enabled, cache_enabled=False):
            named = {f"model.{name}": tensor for name, tensor in given.items()}
            caller = _Caller(self.piece, self.model)
            outs = torch.func.functional_call(caller, named, (inputs, state), tie_weights=False)
        self.nest = map_state(lambda _: None, outs)
        return [leaf for _, leaf in leaves(outs)]


class _Recomputed(torch.autograd.Function):
    """Own, because `torch.utils.checkpoint` keeps the graph of the first run: memory for every operation of every step
    where a loop of PyTorch's runs (use_reentrant=False), or gives no gradient to parameters (True)."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *tensors: Tensor) -> Any:
        ctx.again = again
        # gradients are on, although the graph is thrown away: without, another backend might be the fastest
        outs = again.first(tuple(t.detach().requires_grad_(t.requires_grad) for t in tensors))
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(_owned(out.detach()) for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted, twice = ctx.needs_input_grad[1:], torch.is_grad_enabled()
        # for second derivatives the arguments stay in the graph, each as a tensor of its own: the state hangs on the
        # parameters through earlier pieces, and that way is not this piece's
        inside = [t.view_as(t) if twice else t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]
        outs = ctx.again.second(inside)
        pairs = [(out, grad) for out, grad in zip(outs, grads, strict=True) if grad is not None and out.requires_grad]
        chosen = [t for t, want in zip(inside, wanted, strict=True) if want]
        if not pairs or not chosen:
            return None, *(None for _ in wanted)
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], chosen, [grad for _, grad in pairs], create_graph=twice, allow_unused=True
            )
        )
        return None, *(next(found) if want else None for want in wanted)


def _owned(tensor: Tensor) -> Tensor:
    """On memory of its own: a last state that is a part of all outputs would keep them all."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class _Random:
    """The state of torch's generators: the CPU's, and those of the devices that the tensors are on."""

    def __init__(self, tensors: tuple[Tensor, ...]):
        self.type = next((t.device.type for t in tensors if t.device.type not in ("cpu", "meta")), "cuda")
        self.devices = sorted({t.get_device() for t in tensors if t.device.type == self.type})
        self.states = self._now()

    def _now(self) -> list[Tensor]:
        module = getattr(torch, self.type)
        return [torch.get_rng_state(), *(module.get_rng_state(device) for device in self.devices)]

    def moved(self) -> bool:
        """Whether anything has been drawn since."""
        return not all(torch.equal(then, now) for then, now in zip(self.states, self._now(), strict=True))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Generators as they were here; afterwards as they were before."""
        module = getattr(torch, self.type)
        with torch.random.fork_rng(self.devices, device_type=self.type):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:], strict=True):
                module.set_rng_state(state, device)
            yield

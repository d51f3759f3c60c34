"""Gradient checkpointing: run without keeping activations, and run again in backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from everstep.state import State, check_nest, leaves, map_state, unflatten

Piece = Callable[[Any, Any, State], tuple[Any, State]]
"""`piece(model, inputs, state)` gives an output and the new state, nests of tensors. Inputs may hold other objects."""


def recomputed(piece: Piece, model: nn.Module, inputs: Sequence[Any], state: State) -> tuple[tuple[Any, ...], State]:
    """`piece(model, inputs[0], state)`, `piece(model, inputs[1], …)` with the state after that, and so on.

    Autograd keeps the arguments, the states between pieces, and the activations of the last piece, where backward
    starts; it reruns the others. Both runs execute the same code on the same numbers, with the same torch random
    generators, autocast and buffers, so that the results are bit-identical. Without gradients, and inside torch.func
    transforms, the pieces just run.

    Args:
        piece: what to run. It must not read tensors that need gradients other than its arguments.
        model: its parameters get gradients, including replacements by `torch.func.functional_call`.
        inputs: for each piece a nest of tensors and other objects, which are passed on unchanged.
        state: a nest of tensors, or None.

    Returns:
        The output of each piece, and the last state.
    """
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        outs = []
        for given in inputs:
            out, state = piece(model, given, state)
            outs.append(out)
        return tuple(outs), state
    names: dict[str, int] = {}  # a tied parameter has several
    places: dict[int, int] = {}
    tensors: list[Tensor] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = places.setdefault(id(parameter), len(tensors))
        if names[name] == len(tensors):
            tensors.append(parameter)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(leaf)
        return _Place(len(tensors) - 1)

    again = _Again(piece, model, names, map_state(place, tuple(inputs)), map_state(place, state), tensors)
    found = _Recomputed.apply(again, *tensors)
    return unflatten(again.nest, found)  # type: ignore[no-any-return]


def steps_of_piece(time: int) -> int:
    """50 ∛T or a little less, so that pieces are of equal size and use the same memory.

    Balancing states and steps would give √T, but a step keeps far more than a state, and each piece has a fixed cost:
    so short sequences have few pieces, and the memory of long ones grows more slowly than √T.
    """
    pieces = max(1, math.ceil(time / (50 * time ** (1 / 3)))) if time else 1
    return max(1, math.ceil(time / pieces))


def undisturbed(piece: Piece, model: nn.Module, inputs: Any, state: State) -> tuple[Any, State]:
    """`piece(model, inputs, state)` with copies of the buffers, so that those of the model do not change."""
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
    """The pieces, and what has to be restored when they are rerun."""

    nest: Any

    def __init__(
        self, piece: Piece, model: nn.Module, names: dict[str, int], inputs: Any, state: Any, tensors: list[Tensor]
    ):
        self.caller, self.names, self.inputs, self.state = _Caller(piece, model), names, inputs, state
        self.device = tensors[0].device.type if tensors else "cpu"
        self.autocast = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        self.random = _Random(tensors)
        self.moved: dict[int, tuple[dict[str, Tensor], list[Tensor] | None]] = {}  # for each piece that changes any

    def first(self, number: int, tensors: Sequence[Tensor], state: State) -> tuple[Any, State]:
        """Run a piece, and record whether it drew random numbers or changed buffers."""
        model, random = self.caller.model, self.random.now()
        held = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in model.named_buffers()}
        outs = self._run(number, tensors, state, {})
        now = dict(model.named_buffers())
        moved = any(now[name] is not b or b._version != version for name, (b, version, _) in held.items())
        drawn = any(not torch.equal(*pair) for pair in zip(random, self.random.now(), strict=True))
        if moved or drawn:
            buffers = {name: before for name, (_, _, before) in held.items()} if moved else {}
            self.moved[number] = buffers, random if drawn else None
        return outs

    def second(self, number: int, tensors: Sequence[Tensor], state: State) -> tuple[Any, State]:
        """Run again, with copies of the buffers that the run changes; the copies are discarded."""
        buffers, random = self.moved.get(number, ({}, None))
        with self.random.restored(random):
            return self._run(number, tensors, state, {name: before.clone() for name, before in buffers.items()})

    def _run(
        self, number: int, tensors: Sequence[Tensor], state: State, buffers: dict[str, Tensor]
    ) -> tuple[Any, State]:
        given = {name: tensors[place] for name, place in self.names.items()} | buffers
        named = {f"model.{name}": tensor for name, tensor in given.items()}
        enabled, dtype = self.autocast
        # no cache of low-precision weights: there would be one per piece, kept as long as the caller's autocast
        with torch.enable_grad(), torch.autocast(self.device, dtype, enabled, cache_enabled=False):
            inputs = _at(self.inputs[number], tensors)
            found = torch.func.functional_call(self.caller, named, (inputs, state), tie_weights=False)
            return found  # type: ignore[no-any-return]


class _Place(int):
    """The index of a leaf of a nest in a list of tensors."""


def _at(nest: Any, tensors: Sequence[Tensor]) -> Any:
    """The nest with the tensors at their places."""
    return map_state(lambda leaf: tensors[leaf] if isinstance(leaf, _Place) else leaf, nest)


class _Recomputed(torch.autograd.Function):
    """Replaces `torch.utils.checkpoint`, which keeps the graph of the first run, and so memory for every operation of
    every step of a PyTorch loop (use_reentrant=False), or gives parameters no gradient (True)."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *tensors: Tensor) -> Any:
        # gradients are on, although the graph is discarded: without them another backend might be chosen
        inside = [_leaf(tensor) for tensor in tensors]
        state, outs, flows = _at(again.state, inside), [], []
        # one array for all states: many small ones would fragment the memory that the next piece needs contiguous
        between: State = ()
        last = len(again.inputs) - 1
        for number in range(last):
            out, new = map_state(_leaf, again.first(number, inside, state))
            outs.append(out)
            if number == 0:
                between = map_state(lambda leaf: leaf.new_empty(last, *leaf.shape), new)
            check_nest("checkpointed", new, map_state(lambda leaf: leaf[0], between))
            map_state(lambda into, leaf, number=number: into[number].copy_(leaf), between, new)
            flows.append(map_state(lambda leaf: leaf.requires_grad, new))
            state = _state(between, flows, number)
            del out, new  # the next piece needs the room
        ctx.last = inside, state, again.first(last, inside, state)
        nest = map_state(_leaf, ctx.last[2])
        nest = (*outs, nest[0]), nest[1]
        again.nest = map_state(lambda _: None, nest)
        ctx.again, ctx.flows, ctx.between = again, flows, map_state(lambda _: None, between)
        ctx.save_for_backward(*tensors, *(leaf for _, leaf in leaves(between)))
        ctx.set_materialize_grads(False)
        return tuple(leaf.detach() for _, leaf in leaves(nest))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        again, wanted, size = ctx.again, ctx.needs_input_grad[1:], len(ctx.needs_input_grad) - 1
        tensors = ctx.saved_tensors[:size]
        if torch.is_grad_enabled():
            return None, *_differentiably(again, tensors, grads, wanted)
        between = unflatten(ctx.between, ctx.saved_tensors[size:])
        out_grads, state_grads = unflatten(again.nest, grads)
        parameters = {*again.names.values()}
        inside, state, found = ctx.last or ([_leaf(tensor) for tensor in tensors], None, None)
        ctx.last = None
        for number in reversed(range(len(again.inputs))):
            if found is None:
                state = _at(again.state, inside)
                if number:
                    state = _state(between, ctx.flows, number - 1)
                found = again.second(number, inside, state)
            own: list[Any] = [place for _, place in leaves(again.inputs[number])]
            places = parameters.union(place for place in own if isinstance(place, _Place))
            chosen = [inside[place] for place in places if wanted[place]]
            chosen += [leaf for _, leaf in leaves(state) if leaf is not None and leaf.requires_grad]
            _back(found, (out_grads[number], state_grads), chosen)
            found, state_grads = None, map_state(lambda leaf: None if leaf is None else leaf.grad, state)
        return None, *(leaf.grad if want else None for leaf, want in zip(inside, wanted, strict=True))


def _back(found: Any, grads: Any, chosen: list[Tensor]) -> None:
    """Add to the `grad` of the chosen leaves."""
    pairs = [
        (out, grad)
        for (_, out), (_, grad) in zip(leaves(found), leaves(grads), strict=True)
        if grad is not None and out.requires_grad
    ]
    if pairs and chosen:
        torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs], inputs=chosen)


def _differentiably(
    again: _Again, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> Iterator[Tensor | None]:
    """The gradients by the whole graph of all pieces, differentiable."""
    inside = [tensor.view_as(tensor) for tensor in tensors]
    state, outs = _at(again.state, inside), []
    for number in range(len(again.inputs)):
        out, state = again.second(number, inside, state)
        outs.append(out)
    found = [leaf for _, leaf in leaves((tuple(outs), state))]
    pairs = [(out, grad) for out, grad in zip(found, grads, strict=True) if grad is not None and out.requires_grad]
    chosen = [tensor for tensor, want in zip(inside, wanted, strict=True) if want]
    how = {"create_graph": True, "allow_unused": True}
    rest = iter(torch.autograd.grad([out for out, _ in pairs], chosen, [grad for _, grad in pairs], **how))
    return (next(rest) if want else None for want in wanted)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _state(between: State, flows: list[Any], number: int) -> State:
    """The state after piece `number`, as leaves of a graph."""
    return map_state(lambda leaf, flow: leaf[number].requires_grad_(flow), between, flows[number])


class _Random:
    """torch's generators: the CPU's, and those of the devices that the tensors are on."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.type = next((t.device.type for t in tensors if t.device.type not in ("cpu", "meta")), "cuda")
        self.devices = sorted({t.get_device() for t in tensors if t.device.type == self.type})

    def now(self) -> list[Tensor]:
        module = getattr(torch, self.type)
        return [torch.get_rng_state(), *(module.get_rng_state(device) for device in self.devices)]

    @contextmanager
    def restored(self, states: list[Tensor] | None) -> Iterator[None]:
        """Set the generators to `states` within the block and restore them afterwards; nothing if None."""
        if states is None:
            yield
            return
        module = getattr(torch, self.type)
        with torch.random.fork_rng(self.devices, device_type=self.type):
            torch.set_rng_state(states[0])
            for device, state in zip(self.devices, states[1:], strict=True):
                module.set_rng_state(state, device)
            yield

"""Calling the compiled loops: from tensors to tables of pointers, and back to gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everstep.scanning.fused.cpu import Code
from everstep.scanning.fused.graph import View
from everstep.scanning.fused.packing import pack, packed, pad, padded
from everstep.scanning.fused.pool import empty, zeros
from everstep.scanning.fused.products import OverSteps, OverThreads, Padding, Sums, over_steps, product
from everstep.scanning.fused.program import Program
from everstep.scanning.fused.replay import replay
from everstep.scanning.fused.steps import leading
from everstep.scanning.fused.table import Layout, Places, Rows, layout, table
from everstep.scanning.fused.threads import Kernels, has_short, kernels


def run(
    program: Program,
    again: Callable[[], list[Tensor]],
    rows: Rows,
    start: Sequence[Tensor],
    initial: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Outputs and final state; every call of `again` gives contiguous inputs, and constants.

    Inputs and outputs are (batch, time, …) with padding where the program takes them as they are, else (steps, …).
    """
    values = again()
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in (*values, *start, *initial))
    call = _Call(program, _library(program), rows, program.outside.direct)
    if needed:
        ys, *final = _Loop.apply(call, again, *values, *start, *initial)
    else:
        ys, *final = call.forward([*call.flat(values), *start], initial)
    return ys, final


def _library(program: Program) -> Kernels:
    """What multiplies: under bfloat16 autocast in bfloat16, where the processor can."""
    short = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    wanted = short and program.dtype == torch.float32 and has_short()
    return kernels(program.dtype, True) if wanted else program.kernels


@dataclass(slots=True)
class _Memory:
    """What the loop forward leaves for the one backward.

    Attributes:
        kept: all that has memory of its own, in one piece: small calls are all overhead.
        hosts: memory of inputs that the loop computes itself, by their number.
    """

    kept: Tensor
    hosts: dict[int, Tensor]


@dataclass(slots=True)
class _Call:
    """One call's program, with what multiplies and the steps that there are.

    Attributes:
        outer: whether inputs and outputs are the caller's, (batch, time, …) with padding.
    """

    program: Program
    library: Kernels
    rows: Rows
    outer: bool

    @property
    def ragged(self) -> bool:
        """Whether there is padding in the caller's arrays."""
        return self.outer and not self.rows.whole

    @property
    def places(self) -> Places:
        """Of all steps."""
        return self.rows.places(self.library)

    def flat(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same, inputs (which come first) as (steps, …), padding among them."""
        if not self.outer:
            return list(tensors)
        inputs = len(self.program.step.inputs)
        return [*(t.flatten(0, 1) for t in tensors[:inputs]), *tensors[inputs:]]

    def deep(self, array: Tensor) -> Tensor:
        """Of `flat`, with padding: as the caller has it."""
        return array.view(self.rows.count, self.rows.time, *array.shape[1:]) if self.outer else array

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """An array for the caller."""
        rows = self.rows
        return empty(like, *((rows.count, rows.time) if self.outer else (rows.steps,)), *shape)

    def forward(
        self, tensors: Sequence[Tensor], initial: Sequence[Tensor], memory: _Memory | None = None
    ) -> list[Tensor]:
        """Outputs and final state; what backward needs goes into `memory` and over inputs."""
        program, step = self.program, self.program.step
        xs, constants, start, _ = program.split(tensors)
        ys = self.empty(tensors[0], *step.output.shape)
        final = [empty(tensors[0], self.rows.count, *shape) for shape in step.states]
        hosts = memory.hosts if memory else {}
        arrays = self._read({k: x for k, x in enumerate(xs) if k not in step.factors}, constants)
        arrays |= {f"raw{k}": xs[k] for k in step.factors}
        arrays["y0"] = ys
        for k in range(len(final)):
            arrays[f"start{k}"] = start[k].contiguous()
            arrays[f"end{k}"] = final[k]
            if initial:
                arrays[f"init{k}"] = initial[k].contiguous()
        known = self._layout(program.forward_code, ahead=bool(step.factors), near=False)
        stored = bool(hosts) and (program.stored or known.once)  # at once, they fit no worse where they are kept
        if known.chunk and not stored:
            known = self._layout(program.forward_code, ahead=bool(step.factors), near=True)
        if not known.chunk:
            for k, (number, _) in step.factors.items():
                matrix = self._straight(constants, number)
                x = pack(self.deep(xs[k]), self.rows) if self.ragged else xs[k]
                arrays[f"x{k}"] = product(x, matrix, hosts.get(k), short=self.library.short)
        elif stored:
            arrays |= {f"x{k}": host for k, host in hosts.items()}
        inside = {}
        if memory is not None:
            inside = self._addresses(memory.kept, arrays | {f"x{k}": host for k, host in hosts.items()})
        matrices = [(constants[k], turned) for k, turned in program.forward_matrices]
        zeros_behind = over_steps([], [], [Padding(ys, self.rows)]) if self.ragged else Sums([], [])
        table(known, arrays, matrices, self.rows, inside, self.ragged).run(program.forward, zeros_behind.then)
        return [ys, *final]

    def _layout(self, code: Code, *, ahead: bool, near: bool) -> Layout:
        rows = self.rows
        return layout(self.library, code, rows.count, rows.steps, rows.whole, ahead, near, torch.get_num_threads())

    def _straight(self, constants: Sequence[Tensor], number: int) -> Tensor:
        """A constant as the step has it."""
        return constants[number].t() if number in self.program.outside.turned else constants[number]

    def memory(self, like: Tensor) -> _Memory:
        """Room for what backward needs."""
        step, steps = self.program.step, self.rows.steps
        place, ends = steps * sum(self.program.kept_sizes.values()), {}
        room = place
        if any(k in step.factors for k in self.program.needed):
            for k in step.factors:
                ends[k] = room = room + steps * math.prod(step.inputs[k])
        kept, hosts = empty(like, room), {}
        for k, end in ends.items():
            hosts[k] = kept[place:end].view(steps, *step.inputs[k])
            place = end
        return _Memory(kept, hosts)

    def _addresses(self, kept: Tensor, arrays: Mapping[str, Tensor]) -> dict[str, int]:
        """Of the arrays that the loop forward leaves for the one backward."""
        program, found, place = self.program, {}, kept.data_ptr()
        for name, size in program.kept_sizes.items():
            found[name] = place
            place += self.rows.steps * size * program.bytes
        for k, home in program.homes.items():
            found[f"saved{k}"] = arrays[f"x{home.host}"].data_ptr() + home.offset * program.bytes
        return found

    def _kept(self, name: str, kept: Tensor) -> Tensor:
        """One of those in memory of their own, (steps, size)."""
        steps, place = self.rows.steps, 0
        for other, size in self.program.kept_sizes.items():
            if other == name:
                return kept[place : place + steps * size].view(steps, size)
            place += steps * size
        raise KeyError(name)

    def backward(
        self,
        xs: Mapping[int, Tensor],
        raws: Mapping[int, Tensor],
        tensors: Sequence[Tensor],
        kept: Tensor,
        ys: Tensor,
        grads: Sequence[Tensor | None],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """The backward loop, and a product over all steps for every weight.

        `xs`: the inputs that it needs; `raws`: the factors of inputs; `tensors`: constants, start state, initial state.
        """
        program, step = self.program, self.program.step
        _, constants, start, initial = program.split([None] * len(step.inputs) + list(tensors))
        want_x, want_c, want_start, want_initial = program.split(wanted)
        arrays = self._read(xs, constants) | {"y0": ys} | self._states_back(ys, grads, start, initial)
        used = self._used(want_x, want_c)
        for m in used:
            shape, over = (self.rows.steps, *program.gradients[m].shape), program.over.get(m)
            arrays[f"g{m}"] = empty(ys, *shape) if over is None else arrays[f"x{over}"].detach().view(shape)
        for m in {m for k, m in program.of_constant.items() if want_c[k]}:
            width = 2 * leading(math.prod(program.totals[m].shape), program.bytes)
            arrays[f"sum{m}"] = zeros(ys, max(1, torch.get_num_threads()), width)
        known = self._layout(program.backward_code, ahead=any(want_x[k] for k in program.ahead), near=False)
        if known.chunk:
            for k in program.ahead:
                if want_x[k]:
                    arrays[f"draw{k}"] = self.empty(ys, step.factors[k][1])
        matrices = [(constants[k], turned) for k, turned in program.backward_matrices]
        ready = table(known, arrays, matrices, self.rows, self._addresses(kept, arrays), self.ragged)
        constant = [k for k in program.of_constant if want_c[k]]
        sums, into = self._over_all_steps(raws, constants, arrays, kept, want_c, constant, ready.memory)
        ready.run(program.backward, sums.then)
        d_start = [arrays[f"end{k}"] if w else None for k, w in enumerate(want_start)]
        d_initial = [arrays[f"init{k}"] if w else None for k, w in enumerate(want_initial)]
        d_constants: list[Tensor | None] = [None] * len(constants)
        for k, total in zip(constant, sums.summed, strict=True):
            d_constants[k] = total.view(constants[k].shape)
        for (k, turned), made in zip(into, sums.made, strict=True):
            held, gradient = d_constants[k], made.t() if turned else made
            d_constants[k] = gradient if held is None else held + gradient
        return [*self._of_inputs(constants, arrays, want_x), *d_constants, *d_start, *d_initial]

    def _states_back(
        self, ys: Tensor, grads: Sequence[Tensor | None], start: Sequence[Tensor], initial: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Gradients of outputs and final state, and where those of the start state go."""
        step, rows = self.program.step, self.rows
        dy = grads[0]
        arrays = {"dy0": self.empty(ys, *step.output.shape).zero_() if dy is None else dy.contiguous()}
        for k, shape in enumerate(step.states):
            grad = grads[1 + k]
            if grad is not None:
                arrays[f"start{k}"] = grad.contiguous()
            arrays[f"end{k}"] = empty(ys, rows.count, *shape)
            arrays[f"before{k}"] = start[k].contiguous()
            if initial:
                arrays[f"init{k}"] = zeros(ys, rows.count, *shape)
                arrays[f"before_init{k}"] = initial[k].contiguous()
        return arrays

    def _used(self, want_x: Sequence[bool], want_c: Sequence[bool]) -> set[int]:
        """The gradients of every step that are asked for, or that others are made of."""
        program, factors = self.program, self.program.step.factors
        used = {m for k, m in program.of_input.items() if want_x[k] or (k in factors and want_c[factors[k][0]])}
        pairs = zip(program.of_product, program.adjoint.products, strict=True)
        return used | {m for m, p in pairs if want_c[p.matrix]}

    def _of_inputs(
        self, constants: Sequence[Tensor], arrays: Mapping[str, Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        factors = self.program.step.factors
        found: list[Tensor | None] = [None] * len(wanted)
        given: set[int] = set()
        for k, m in self.program.of_input.items():
            if not wanted[k]:
                continue
            if f"draw{k}" in arrays:
                found[k] = arrays[f"draw{k}"]
                continue
            if k in factors:
                matrix = self._straight(constants, factors[k][0]).t()
                gradient = product(_flat(arrays[f"g{m}"], self.rows.steps), matrix, short=self.library.short)
            else:
                gradient = arrays[f"g{m}"].clone() if m in given else arrays[f"g{m}"]
                given.add(m)
            found[k] = pad(gradient, self.rows) if self.ragged else self.deep(gradient)
        return found

    def _over_all_steps(
        self,
        raws: Mapping[int, Tensor],
        constants: Sequence[Tensor],
        arrays: Mapping[str, Tensor],
        kept: Tensor,
        wanted: Sequence[bool],
        constant: Sequence[int],
        room: Tensor,
    ) -> tuple[Sums, list[tuple[int, bool]]]:
        """What makes the gradients of constants when the loop is over: totals of those in `constant`, and products.

        Of each product, the constant that it is of, and whether it is transposed. `room` is memory of the loop's own.
        """
        program = self.program
        # two parameters may share numbers, but not their memory: each gets a sum of its own
        totals = []
        for m in (program.of_constant[k] for k in constant):
            size = math.prod(program.totals[m].shape)
            ld = leading(size, program.bytes)
            totals.append(OverThreads(arrays[f"sum{m}"], slice(ld, ld + size)))
        turned = program.outside.turned
        products: list[OverSteps] = []
        into: list[tuple[int, bool]] = []
        for one, m in zip(program.adjoint.products, program.of_product, strict=True):
            if wanted[one.matrix]:
                gradient = _flat(arrays[f"g{m}"], self.rows.steps)
                products.append(self._over_steps(gradient, one.operand, arrays, kept))
                into.append((one.matrix, one.matrix not in turned))
        for k in program.ahead:
            number = program.step.factors[k][0]
            if wanted[number]:
                gradient = _flat(arrays[f"g{program.of_input[k]}"], self.rows.steps)
                # in the layout of the matrix: a parameter's gradient is to be contiguous as the parameter is
                straight = number not in turned and constants[number].is_contiguous()
                raw = raws[k]
                if straight:
                    products.append(OverSteps(pack(self.deep(raw), self.rows) if self.ragged else raw, gradient))
                else:
                    products.append(OverSteps(gradient, raw, (self.places.used, raw) if self.ragged else None))
                into.append((number, not straight and number not in turned))
        drawn = [array for name, array in arrays.items() if name.startswith("draw")] if self.ragged else []
        paddings = [Padding(array, self.rows) for array in drawn]
        return over_steps(products, totals, paddings, short=self.library.short, room=room), into

    def _over_steps(self, gradient: Tensor, view: View, arrays: Mapping[str, Tensor], kept: Tensor) -> OverSteps:
        """Σ over all steps of gradientᵀ · operand: a matrix's gradient, transposed."""
        kind, k = view.node.key
        name = self.program.sequence(k) if kind == "prev" else f"{kind}{k}"
        outer = self.outer and name in self.program.outer
        steps = self.rows.count * self.rows.time if outer else self.rows.steps
        operand = _flat(arrays[name] if name in arrays else self._kept(name, kept), steps)
        columns = slice(view.place.offset, view.place.offset + math.prod(view.shape))
        if not view.whole:
            operand = operand[:, columns]
        padding = outer and self.ragged
        if kind != "prev":
            return OverSteps(gradient, operand, (self.places.used, operand) if padding else None)
        start = _flat(arrays[f"before{k}"], self.rows.count)
        if self.rows.resets is not None:
            start = torch.cat([start, _flat(arrays[f"before_init{k}"], self.rows.count)])
        before = self.places.used_before if padding else self.places.before
        return OverSteps(gradient, operand, (before, start if view.whole else start[:, columns]))

    def _read(self, xs: Mapping[int, Tensor], constants: Sequence[Tensor]) -> dict[str, Tensor]:
        """The arrays that loops read element by element."""
        arrays = {f"x{k}": x for k, x in xs.items()}
        for k in self.program.elementwise:
            arrays[f"const{k}"] = constants[k].contiguous()
        return arrays


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, again: Callable[[], list[Tensor]], *tensors: Tensor) -> Any:
        ctx.call, ctx.again, ctx.spent = call, again, False
        program = call.program
        count = len(tensors) - (len(program.states) if call.rows.resets is not None else 0)
        tensors = tuple(call.flat(tensors))
        memory = call.memory(tensors[0])
        ys, *final = call.forward(tensors[:count], tensors[count:], memory)
        xs = [memory.hosts.get(k, tensors[k]) for k in program.needed]
        raws = [tensors[k] for k in program.step.factors]
        ctx.save_for_backward(memory.kept, ys, *xs, *raws, *tensors[len(program.step.inputs) :])
        ctx.set_materialize_grads(False)
        return ys, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, ys, *rest = ctx.saved_tensors
        call, wanted = ctx.call, ctx.needs_input_grad[2:]
        program = call.program
        xs = dict(zip(program.needed, rest, strict=False))
        raws = dict(zip(program.step.factors, rest[len(xs) :], strict=False))
        others = rest[len(xs) + len(raws) :]
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(wanted))
        if torch.is_grad_enabled():
            state = others[len(program.step.constants) :]
            return None, None, *_differentiable(call, [*ctx.again(), *state], grads, wanted)
        if ctx.spent:  # by an earlier call, whose gradients have overwritten what was kept
            values = call.flat([value.detach() for value in ctx.again()])
            memory, kept = call.memory(ys), None
            inputs = len(program.step.inputs)
            _, _, start, initial = program.split([*values, *others[len(values) - inputs :]])
            call.forward([*values, *start], initial, memory)
            kept, xs = memory.kept, {k: memory.hosts.get(k, values[k]) for k in program.needed}
        ctx.spent = bool(program.over)
        return None, None, *call.backward(xs, raws, others, kept, ys, grads, wanted)


def _differentiable(
    call: _Call, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: the loop replayed by PyTorch, one step at a time."""
    # each on its own: a state that was carried here depends on the parameters too, and that path is not this call's
    tensors = [t.view_as(t) for t in tensors]
    given, inputs = call.flat(tensors), len(call.program.step.inputs)
    if call.ragged:
        given[:inputs] = [packed(t, call.rows) for t in tensors[:inputs]]
    outputs = replay(call.program, call.rows, given)
    outputs[0] = padded(outputs[0], call.rows) if call.ragged else call.deep(outputs[0])
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], chosen, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if want else None for want in wanted]


def _flat(array: Tensor, rows: int) -> Tensor:
    """(rows or steps, numbers), of single numbers too."""
    return array if array.dim() == 2 and array.shape[0] == rows else array.reshape(rows, -1)

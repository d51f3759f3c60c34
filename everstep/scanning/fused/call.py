"""Calling the compiled loops: from tensors to tables of pointers, and back to gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from everstep.scanning.fused import build, cpu, overlay
from everstep.scanning.fused.adjoint import Adjoint, derive
from everstep.scanning.fused.graph import View, whole
from everstep.scanning.fused.lower import Lowered
from everstep.scanning.fused.plan import End, Plan, plan
from everstep.scanning.fused.pool import empty, zeros
from everstep.scanning.fused.products import transposed
from everstep.scanning.fused.replay import evaluate
from everstep.scanning.fused.steps import Setting, leading
from everstep.scanning.fused.table import Rows, table
from everstep.scanning.fused.threads import Kernels, has_short, kernels


class Program:
    """A step in compiled form, for one cell, one shape of a row and one dtype.

    Raises:
        toolchain.BuildError: the compiler failed.
        Untraceable: an operation without a derivative.
    """

    def __init__(self, step: Lowered, dtype: torch.dtype, name: str):
        self.step, self.dtype, self.name = step, dtype, name
        self.bytes = 4 if dtype == torch.float32 else 8
        self.kernels: Kernels = kernels(dtype)
        self.adjoint: Adjoint = derive(step)
        self.states = tuple(_size(shape) for shape in step.states)
        self.shared = [
            k
            for k, view in enumerate(step.following)
            if view.node is step.output.node and view.whole and step.output.whole
        ]
        """Leaves of the state that are the output itself, so that the outputs are also their values at every step."""
        self.kept = sorted(self.adjoint.kept)
        self._forward()
        self._backward()
        self._overlay()
        self._generate()
        read = {node.key for order in (self.forward_plan, self.backward_plan) for node in overlay.inputs(order)}
        self.elementwise = sorted(k for kind, k in read if kind == "const")
        """Constants that are read by pointwise operations."""

    def sequence(self, leaf: int) -> str:
        """The array that holds a leaf after every step."""
        return "y0" if leaf in self.shared else f"seq{leaf}"

    def _forward(self) -> None:
        step = self.step
        ends = [End("y", 0, step.output)]
        ends += [End("next", k, view) for k, view in enumerate(step.following)]
        ends += [End("saved", k, whole(node)) for k, node in enumerate(self.adjoint.saved)]
        self.extra = [k for k in self.kept if k not in self.shared]
        ends += [End("seq", k, step.following[k]) for k in self.extra]
        self.forward_plan = plan(step.builder, ends, "next")

    def _backward(self) -> None:
        step, adjoint = self.step, self.adjoint
        ends = [End("dprev", k, view) for k, view in enumerate(adjoint.previous)]
        self.gradients: list[View] = []
        """What the backward loop leaves of every step: gradients of inputs and of products."""
        self.totals: list[View] = []
        """What it adds up over all steps: gradients of constants."""

        def place(view: View, among: list[View]) -> int:
            found = [k for k, other in enumerate(among) if other.node is view.node and other.place == view.place]
            if not found:
                among.append(view)
            return found[0] if found else len(among) - 1

        self.of_input = {k: place(view, self.gradients) for k, view in adjoint.inputs.items()}
        self.of_product = [place(whole(p.gradient), self.gradients) for p in adjoint.products]
        self.of_constant = {k: place(view, self.totals) for k, view in adjoint.constants.items()}
        ends += [End("g", k, view) for k, view in enumerate(self.gradients)]
        ends += [End("sum", k, view) for k, view in enumerate(self.totals)]
        self.backward_plan = plan(step.builder, ends, "dprev")

    def _overlay(self) -> None:
        """Which arrays lie in the memory of which input."""
        sizes = {k: _size(shape) for k, shape in enumerate(self.step.inputs)}
        # operands of products are read once more, when the loop backward is over
        operands = {p.operand.node.key for p in self.adjoint.products}
        hosts = {k: sizes[k] for k in overlay.own(self.step.before, len(sizes)) if ("x", k) not in operands}
        saved = {k: node.size for k, node in enumerate(self.adjoint.saved) if ("saved", k) not in operands}
        self.homes = overlay.homes(hosts, saved, self.forward_plan, self.backward_plan)
        """Saved values that overwrite an input in training."""
        hosts = {home.host: sizes[home.host] for home in self.homes.values()}
        self.over: dict[int, int] = {}
        """Gradients that overwrite an input: the input's number."""
        for host, size in hosts.items():
            number = self.of_input.get(host, -1)
            early = overlay.hindering(self.backward_plan, number, size, host, self.homes)
            if number not in self.over and early is not None and sum(saved[k] for k in early) < size:
                self.over[number] = host
                self.homes = {k: home for k, home in self.homes.items() if k not in early}
        read = {node.key for node in overlay.inputs(self.backward_plan)} | operands
        self.needed = sorted({*hosts, *(k for kind, k in read if kind == "x")})
        """Inputs that backward needs."""

    def _generate(self) -> None:
        step, adjoint = self.step, self.adjoint
        inputs = {k: _size(shape) for k, shape in enumerate(step.inputs)}
        sizes = {f"x{k}": size for k, size in inputs.items()}
        sizes |= {f"const{k}": _size(shape) for k, shape in enumerate(step.constants)}
        sizes |= {"y0": _size(step.output.shape)}
        kept = {f"saved{k}": node.size for k, node in enumerate(adjoint.saved)}
        kept |= {f"seq{k}": self.states[k] for k in self.extra}
        apart = {f"saved{k}": inputs[home.host] for k, home in self.homes.items()}
        self.kept_sizes = {name: size for name, size in kept.items() if name not in apart}
        """What the forward loop leaves for the backward one in memory of its own, numbers a step."""
        setting = Setting(
            False, self.states, sizes | kept, frozenset(), frozenset(kept), (None,) * len(self.states), apart
        )
        self.forward_code = cpu.generate(self.forward_plan, setting, self.bytes)
        self.forward = build.load(self.forward_code.source, f"{self.name}-forward").run

        sizes |= {"dy0": _size(step.output.shape), **kept}
        for k, size in enumerate(self.states):
            sizes |= {f"before{k}": size, f"before_init{k}": size}
        optional = {f"g{k}": _size(view.shape) for k, view in enumerate(self.gradients)}
        sums = {f"sum{k}": _size(view.shape) for k, view in enumerate(self.totals)}
        following = tuple(self.sequence(k) if k in adjoint.kept else None for k in range(len(self.states)))
        setting = Setting(
            True, self.states, sizes | optional | sums, frozenset(sums), frozenset(optional), following, apart
        )
        self.backward_code = cpu.generate(self.backward_plan, setting, self.bytes)
        self.backward = build.load(self.backward_code.source, f"{self.name}-backward").run

    # running

    def run(
        self, again: Callable[[], list[Tensor]], rows: Rows, start: Sequence[Tensor], initial: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs (steps, size) and final state; every call of `again` gives contiguous inputs, and constants."""
        values = again()
        needed = torch.is_grad_enabled() and any(t.requires_grad for t in (*values, *start, *initial))
        library = self._library()
        if needed:
            ys, *final = _Loop.apply(self, rows, again, library, *values, *start, *initial)
        else:
            ys, *final = self.go(library, [*values, *start], initial, rows)
        return ys, final

    def _library(self) -> Kernels:
        """What multiplies: under bfloat16 autocast in bfloat16, where the processor can."""
        short = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return kernels(self.dtype, True) if short and self.dtype == torch.float32 and has_short() else self.kernels

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Inputs, constants, start state, initial state."""
        a = len(self.step.inputs)
        b = a + len(self.step.constants)
        c = b + len(self.states)
        return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:]

    def go(
        self,
        library: Kernels,
        tensors: Sequence[Tensor],
        initial: Sequence[Tensor],
        rows: Rows,
        kept: Tensor | None = None,
    ) -> list[Tensor]:
        """The forward loop; what backward needs goes into `kept` and over inputs."""
        xs, constants, start, _ = self.split(tensors)
        like = tensors[0]
        ys = empty(like, rows.steps, *self.step.output.shape)
        final = [empty(like, rows.count, *shape) for shape in self.step.states]
        arrays = self._read(dict(enumerate(xs)), constants)
        arrays["y0"] = ys
        for k in range(len(self.states)):
            arrays[f"start{k}"] = start[k].contiguous()
            arrays[f"end{k}"] = final[k]
            if initial:
                arrays[f"init{k}"] = initial[k].contiguous()
        inside = {}
        if kept is not None:
            inside = self._keep(kept, rows) | self._at_home(arrays)
        matrices = self._matrices(self.forward_plan, constants)
        table(library, self.forward_code, arrays, matrices, rows, inside).run(self.forward)
        return [ys, *final]

    def memory(self, like: Tensor, rows: Rows) -> Tensor:
        """One piece for all that is kept: small calls are all overhead."""
        return empty(like, rows.steps * sum(self.kept_sizes.values()))

    def _keep(self, kept: Tensor, rows: Rows) -> dict[str, int]:
        """Addresses of the arrays of their own that the forward loop leaves for the backward one."""
        found = {}
        place = kept.data_ptr()
        for name, size in self.kept_sizes.items():
            found[name] = place
            place += rows.steps * size * self.bytes
        return found

    def _kept(self, name: str, kept: Tensor, rows: Rows) -> Tensor:
        """One of them, (steps, size)."""
        place = 0
        for other, size in self.kept_sizes.items():
            if other == name:
                return kept[place : place + rows.steps * size].view(rows.steps, size)
            place += rows.steps * size
        raise KeyError(name)

    def _at_home(self, arrays: Mapping[str, Tensor]) -> dict[str, int]:
        """Addresses of what it leaves in the memory of inputs."""
        return {
            f"saved{k}": arrays[f"x{home.host}"].data_ptr() + home.offset * self.bytes for k, home in self.homes.items()
        }

    def back(
        self,
        library: Kernels,
        xs: Mapping[int, Tensor],
        tensors: Sequence[Tensor],
        kept: Tensor,
        ys: Tensor,
        rows: Rows,
        grads: Sequence[Tensor | None],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """The backward loop, and a product over all steps for every weight.

        `xs`: the inputs that it needs; `tensors`: constants, start state, initial state.
        """
        _, constants, start, initial = self.split([None] * len(self.step.inputs) + list(tensors))
        like = ys
        arrays = self._read(xs, constants)
        arrays["y0"] = ys
        dy = grads[0]
        arrays["dy0"] = zeros(like, rows.steps, *self.step.output.shape) if dy is None else dy.contiguous()
        ends = []
        for k, shape in enumerate(self.step.states):
            grad = grads[1 + k]
            if grad is not None:
                arrays[f"start{k}"] = grad.contiguous()
            ends.append(empty(like, rows.count, *shape))
            arrays[f"end{k}"] = ends[k]
            arrays[f"before{k}"] = start[k].contiguous()
            if initial:
                arrays[f"init{k}"] = zeros(like, rows.count, *shape)
                arrays[f"before_init{k}"] = initial[k].contiguous()
        want_x, want_c, want_start, want_initial = self.split(wanted)
        used = {m for k, m in self.of_input.items() if want_x[k]}
        used |= {m for m, p in zip(self.of_product, self.adjoint.products, strict=True) if want_c[p.matrix]}
        for m in used:
            shape = (rows.steps, *self.gradients[m].shape)
            arrays[f"g{m}"] = arrays[f"x{self.over[m]}"].detach().view(shape) if m in self.over else empty(like, *shape)
        threads = max(1, torch.get_num_threads())
        for m in {m for k, m in self.of_constant.items() if want_c[k]}:
            width = 2 * leading(_size(self.totals[m].shape), self.bytes)
            arrays[f"sum{m}"] = zeros(like, threads, width)
        matrices = self._matrices(self.backward_plan, constants)
        inside = self._keep(kept, rows) | self._at_home(arrays)
        table(library, self.backward_code, arrays, matrices, rows, inside).run(self.backward)

        d_constants: list[Tensor | None] = [None] * len(constants)
        for k, m in self.of_constant.items():
            if want_c[k]:
                size = _size(self.totals[m].shape)
                ld = leading(size, self.bytes)
                # a sum makes a tensor of its own: two parameters may share these numbers, but not their memory
                d_constants[k] = arrays[f"sum{m}"][:, ld : ld + size].sum(0).view_as(constants[k])
        for product, m in zip(self.adjoint.products, self.of_product, strict=True):
            if want_c[product.matrix]:
                gradient = self._over_steps(library, _flat(arrays[f"g{m}"]), product.operand, arrays, kept, rows).t()
                held = d_constants[product.matrix]
                d_constants[product.matrix] = gradient if held is None else held + gradient
        d_x: list[Tensor | None] = [None] * len(want_x)
        given: set[int] = set()
        for k, m in self.of_input.items():
            if want_x[k]:
                d_x[k] = arrays[f"g{m}"].clone() if m in given else arrays[f"g{m}"]
                given.add(m)
        d_start = [ends[k] if want_start[k] else None for k in range(len(ends))]
        d_initial = [arrays[f"init{k}"] if w else None for k, w in enumerate(want_initial)]
        return [*d_x, *d_constants, *d_start, *d_initial]

    def _over_steps(
        self, library: Kernels, gradient: Tensor, view: View, arrays: dict[str, Tensor], kept: Tensor, rows: Rows
    ) -> Tensor:
        """Σ over all steps of gradientᵀ · operand: a matrix's gradient, transposed."""
        kind, k = view.node.key
        name = self.sequence(k) if kind == "prev" else f"{kind}{k}"
        columns = slice(None) if view.whole else slice(view.place.offset, view.place.offset + _size(view.shape))
        operand = _flat(arrays[name] if name in arrays else self._kept(name, kept, rows))[:, columns]
        if kind != "prev":
            return transposed(gradient, operand, short=library.short)
        start = _flat(arrays[f"before{k}"])
        if rows.resets is not None:
            start = torch.cat([start, _flat(arrays[f"before_init{k}"])])
        return transposed(gradient, operand, (rows.before, start[:, columns]), short=library.short)

    def _read(self, xs: Mapping[int, Tensor], constants: Sequence[Tensor]) -> dict[str, Tensor]:
        """The arrays that loops read element by element."""
        arrays = {f"x{k}": x for k, x in xs.items()}
        for k in self.elementwise:
            arrays[f"const{k}"] = constants[k].contiguous()
        return arrays

    def _matrices(self, order: Plan, constants: Sequence[Tensor]) -> list[Tensor]:
        """The matrix of each product, (operand size, result size)."""
        keys = [node.key for node in order.products]
        return [constants[key[0]].t() if isinstance(key, tuple) else constants[key] for key in keys]


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: Program, rows: Rows, again: Callable[[], list[Tensor]], library: Kernels, *tensors: Tensor
    ) -> Any:
        ctx.program, ctx.rows, ctx.again, ctx.library, ctx.spent = program, rows, again, library, False
        count = len(tensors) - (len(program.states) if rows.resets is not None else 0)
        kept = program.memory(tensors[0], rows)
        ys, *final = program.go(library, tensors[:count], tensors[count:], rows, kept)
        xs = [tensors[k] for k in program.needed]
        ctx.save_for_backward(kept, ys, *xs, *tensors[len(program.step.inputs) :])
        ctx.set_materialize_grads(False)
        return ys, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, ys, *rest = ctx.saved_tensors
        program, rows, wanted = ctx.program, ctx.rows, ctx.needs_input_grad[4:]
        xs = dict(zip(program.needed, rest, strict=False))
        others = rest[len(xs) :]
        if all(grad is None for grad in grads):
            return (None,) * (4 + len(wanted))
        if torch.is_grad_enabled():
            state = others[len(program.step.constants) :]
            return None, None, None, None, *_differentiable(program, rows, [*ctx.again(), *state], grads, wanted)
        if ctx.spent:  # by an earlier call, whose gradients have overwritten what was kept
            values = [value.detach() for value in ctx.again()]
            kept = program.memory(ys, rows)
            inputs = len(program.step.inputs)
            _, _, start, initial = program.split([*values, *others[len(values) - inputs :]])
            program.go(ctx.library, [*values, *start], initial, rows, kept)
            xs = {k: values[k] for k in program.needed}
        ctx.spent = bool(program.over)
        return None, None, None, None, *program.back(ctx.library, xs, others, kept, ys, rows, grads, wanted)


def _differentiable(
    program: Program, rows: Rows, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: the loop replayed by PyTorch, one step at a time."""
    # each on its own: a state that was carried here depends on the parameters too, and that path is not this call's
    tensors = [t.view_as(t) for t in tensors]
    outputs = replay(program, rows, tensors)
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], chosen, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if want else None for want in wanted]


def replay(program: Program, rows: Rows, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and final state, by PyTorch."""
    xs, constants, state, initial = program.split(tensors)
    state = list(state)
    longest = int(rows.length.max())
    pieces: list[Tensor] = []
    places: list[Tensor] = []

    def matrix(key: int) -> Tensor:
        found: Tensor = constants[key]
        return found

    for t in range(longest):
        live = (rows.length > t).nonzero()[:, 0]
        at = rows.offset[live] + t
        if rows.resets is not None:
            again = rows.resets[at].bool()
            if bool(again.any()):
                who = live[again]
                state = [s.index_copy(0, who, i[who]) for s, i in zip(state, initial, strict=True)]
        inputs = {("x", k): x[at] for k, x in enumerate(xs)} | {("const", k): c for k, c in enumerate(constants)}
        inputs |= {("prev", k): s[live] for k, s in enumerate(state)}
        y, *new = evaluate([program.step.output, *program.step.following], inputs, matrix)
        state = [s.index_copy(0, live, n.expand(len(live), *n.shape[1:])) for s, n in zip(state, new, strict=True)]
        pieces.append(y.expand(len(live), *y.shape[1:]))
        places.append(at)
    ys = torch.cat(pieces)
    return [torch.zeros_like(ys).index_copy(0, torch.cat(places), ys), *state]


def _flat(array: Tensor) -> Tensor:
    """(rows or steps, numbers), of single numbers too."""
    return array.reshape(len(array), -1)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size

"""Calls of the compiled loops, forward and backward."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from everstep.backends.fused.row_graph import Shape
from everstep.backends.fused.runtime.backward_table import PROJECTED, READY, SHARED, BackwardTable, backward_table
from everstep.backends.fused.runtime.forward_table import INNER, LoopTable, forward_table, place
from everstep.backends.fused.runtime.hoisted import Hoisted
from everstep.backends.fused.runtime.packing import pack, packed, pad, padded
from everstep.backends.fused.runtime.program import Program
from everstep.backends.fused.runtime.replay import replay
from everstep.backends.fused.runtime.work_layout import Layout, Rows, layout, numbers
from everstep.native.c_tables import Slot
from everstep.native.kernels import Kernels, has_bf16, kernels
from everstep.native.memory_pool import empty, inner, scratch
from everstep.native.plain_memory import plain
from everstep.native.products import product, threads_for, workspace_over_steps

_retained = torch._C._autograd._get_current_graph_task_keep_graph
"""Whether the graph of the current backward pass is retained."""


def run(
    program: Program,
    hoisted: Hoisted,
    rows: Rows,
    start: Sequence[Tensor],
    held: Sequence[Tensor],
    initial: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Run a program: outputs and final state.

    Inputs and outputs are (batch, time, …) with padding if the program accepts them directly, else (steps, …).
    """
    tensors = [*hoisted(), *start, *held, *initial]
    call = _Call(program, _library(program), rows)
    if torch.is_grad_enabled() and True in [t.requires_grad for t in tensors]:
        hoisted.watch()
        ys, *final = _apply(call, hoisted, *tensors)
    else:
        ys, *final = call.forward(tensors, training=False)
    return ys, final


def _library(program: Program) -> Kernels:
    """The kernels of a program; bfloat16 under bfloat16 autocast, if the processor supports it."""
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu"):
        bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        if bf16 and program.dtype == torch.float32 and has_bf16():
            return kernels(program.dtype, True)
    return program.loops.kernels


class _Call:
    """A call: program, kernels and valid steps.

    Attributes:
        outer: whether inputs and outputs are the caller's, (batch, time, …).
        ragged: whether they have padding.
    """

    __slots__ = ("library", "outer", "program", "ragged", "rows")

    def __init__(self, program: Program, library: Kernels, rows: Rows):
        self.program, self.library, self.rows = program, library, rows
        self.outer = program.outside.direct
        self.ragged = self.outer and not rows.whole

    def forward(self, tensors: Sequence[Tensor], *, training: bool) -> list[Tensor]:
        """Outputs and final state, from inputs, constants, start and initial state; in training also saved values."""
        program, rows, bf16 = self.program, self.rows, self.library.bf16
        factors = program.step.factors
        work = self._layout(forward=True, projections=bool(factors))
        # computed for all steps at once, they may as well be stored
        stored = training and program.hosting and work.chunk > 0 and (program.stored or work.once)
        if work.chunk and not stored:
            work = self._layout(forward=True, projections=True, near=True)
        ways = (bf16, training, rows.resets is not None, self.ragged, work.chunk > 0, stored)
        table = program.call_tables.get(ways)
        if table is None:
            table = program.call_tables[ways] = forward_table(program, self.library, *ways[1:])
        given = self._given(table, tensors, work)
        for k, number, home in table.before:
            x = self._steps(given[k])
            out = None if home is None else self._array(given, home, program.step.inputs[k])
            made = product(x, self._as_used(tensors[program.ends[0] + number], number), out, bf16=bf16)
            if home is None:
                given.append(made)
        threads = threads_for(rows.count * rows.time * table.padded, torch.get_num_threads()) if table.padded else 1
        self._run(table, given, work, threads)
        return given[table.ys : table.ys + 1 + len(program.states) + training]

    def backward(
        self, saved: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """Gradients of inputs, constants, start and initial state; `saved` as in `BackwardTable`."""
        program, rows = self.program, self.rows
        first = len(program.saved_inputs)
        work = self._layout(forward=False, projections=True in [wanted[k] for k in program.projections])
        row_major = tuple([k for k in program.upright if saved[first + k].is_contiguous()])
        present = tuple([grad is not None for grad in grads])
        ways = (self.library.bf16, rows.resets is not None, self.ragged, work.chunk > 0, wanted, present, row_major)
        table = program.call_tables.get(ways)
        if table is None:
            table = program.call_tables[ways] = backward_table(program, self.library, *ways[1:])
        given = self._given(table, [*saved, *[grad for grad in grads if grad is not None]], work)
        for k in table.packed:
            given.append(self._steps(given[k]))
        for start, initial in table.joined:
            given.append(torch.cat([given[start], given[initial]]))
        threads, workspace = _workspace(
            program.dtype, table, rows.steps, rows.count * rows.time, torch.get_num_threads()
        )
        self._run(table, given, work, threads, workspace)
        found: list[Tensor | None] = [None] * len(wanted)
        for k, i, transposed in table.results:
            held, gradient = found[k], given[i].t() if transposed else given[i]
            found[k] = gradient if held is None else held + gradient
        for k, slot, shape, then in table.inputs:
            found[k] = self._of_input(given, slot, shape, then)
        for k in program.flat:
            if wanted[k] and found[k] is None:
                found[k] = self._zeros(k, saved)
        return found

    def _zeros(self, k: int, saved: Sequence[Tensor]) -> Tensor:
        """The zero gradient of an input or constant."""
        program, rows = self.program, self.rows
        inputs = len(program.step.inputs)
        if k >= inputs:
            return torch.zeros_like(saved[len(program.saved_inputs) + k - inputs])
        factor = program.step.factors.get(k)
        shape = program.step.inputs[k] if factor is None else (factor[1],)
        return saved[0].new_zeros(*((rows.count, rows.time) if self.outer else (rows.steps,)), *shape)

    def _layout(self, *, forward: bool, projections: bool, near: bool = False) -> Layout:
        rows, program = self.rows, self.program
        code = program.forward_code if forward else program.backward_code
        return layout(
            self.library, code, rows.count, rows.steps, rows.whole, projections, near, torch.get_num_threads()
        )

    def _given(self, table: LoopTable, tensors: Sequence[Tensor], work: Layout) -> list[Tensor]:
        """The arrays of a call: the given ones, then those it allocates."""
        given, rows = list(tensors), self.rows
        for i in table.even:
            given[i] = given[i].contiguous()
        like, steps = given[0], (rows.steps,)
        firsts = ((), (rows.count,), steps, (rows.count, rows.time) if self.outer else steps, (work.threads,))
        given += [
            inner(like, rows.steps * shape[0]) if first == INNER else empty(like, *firsts[first], *shape)
            for first, shape in table.made
        ]
        for i in table.zero:
            given[i].zero_()
        return given

    def _run(self, table: LoopTable, given: Sequence[Tensor], work: Layout, threads: int, workspace: int = 0) -> None:
        """Run a table; for `threads` and `workspace` see `numbers`."""
        memory = scratch(given[0], max(work.numbers, threads * workspace + 16))
        start = -(-memory.data_ptr() // 64) * 64
        told = numbers(self.library, work, self.rows, start, threads, workspace)
        strides = [stride for i in table.strided for stride in given[i].stride()]
        arguments = table.numbers(*told, *[array.data_ptr() for array in given], *strides)
        self.library.call(table.call_table.address, ctypes.addressof(arguments))

    def _steps(self, x: Tensor) -> Tensor:
        """An input as (steps, …), without padding."""
        if not self.outer:
            return x
        return pack(x, self.rows) if self.ragged else x.flatten(0, 1)

    def _as_used(self, constant: Tensor, number: int) -> Tensor:
        """A constant in the layout of the step."""
        return constant.t() if number in self.program.outside.transposed else constant

    def _array(self, given: Sequence[Tensor], slot: Slot, shape: Shape) -> Tensor:
        """An array (steps, …), which may lie within another."""
        steps, array = self.rows.steps, given[place(slot)].detach()
        size = steps * math.prod(shape)
        if array.numel() != size:
            first = (slot.plus + slot.each * steps) // self.program.bytes
            array = array.view(-1)[first : first + size]
        return array.view(steps, *shape)

    def _of_input(self, given: Sequence[Tensor], slot: Slot, shape: Shape, then: int) -> Tensor:
        """The gradient of an input; for `slot`, `shape` and `then` see `BackwardTable.inputs`."""
        if then == PROJECTED:
            return given[place(slot)]
        gradient = self._array(given, slot, shape)
        if then == SHARED:
            gradient = gradient.clone()
        elif then != READY:
            constant = given[len(self.program.saved_inputs) + then]
            matrix = self._as_used(constant, then).t()
            gradient = product(gradient.flatten(1), matrix, bf16=self.library.bf16)
        if self.ragged:
            return pad(gradient, self.rows)
        return gradient.view(self.rows.count, self.rows.time, *gradient.shape[1:]) if self.outer else gradient


@lru_cache(1 << 10)
def _workspace(dtype: torch.dtype, table: BackwardTable, steps: int, padded: int, threads: int) -> tuple[int, int]:
    """The threads for the sums over `steps` (`padded` with padding), and the numbers of workspace that each needs."""
    workspace, work = 0, table.padded * padded
    for rows, columns in table.sums:
        workspace = max(workspace, workspace_over_steps(dtype, steps, rows, columns))
        work += steps * rows * columns
    return threads_for(work, threads), workspace


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, hoisted: Hoisted, *tensors: Tensor) -> Any:
        ctx.call, ctx.hoisted, ctx.spent = call, hoisted, False
        ys, *final, kept = call.forward(tensors, training=True)
        inputs = [tensors[k] for k in call.program.saved_inputs]
        ctx.save_for_backward(*inputs, *tensors[call.program.ends[0] :], ys, kept)
        ctx.set_materialize_grads(False)
        return ys, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = _gradients(ctx, list(ctx.saved_tensors), grads)
        if not _retained():
            del ctx.hoisted  # as PyTorch frees saved tensors
        return None, None, *found


_apply = super(torch.autograd.Function, _Loop).apply
"""`_Loop.apply` without its check for `torch.func` tensors, which are not `plain`."""


def _gradients(ctx: Any, saved: list[Tensor], grads: tuple[Tensor | None, ...]) -> Sequence[Tensor | None]:
    call, wanted = ctx.call, ctx.needs_input_grad[2:]
    program = call.program
    # a row without steps returns its start state
    if program.adjoint.apart and int(call.rows.length.min()) > 0:
        wanted = program.reaching(wanted)
    came = [grad for grad in grads if grad is not None]
    if not came or True not in wanted:
        return (None,) * len(wanted)
    inputs, constants = len(program.saved_inputs), len(program.step.constants)
    state = saved[inputs + constants : -2]
    graph = torch.is_grad_enabled()
    if graph or not plain(*came):
        with torch.enable_grad():
            return _differentiable(call, [*ctx.hoisted.again(), *state], grads, wanted, graph)
    if ctx.spent:  # gradients of an earlier call have overwritten the saved values
        values = [value.detach() for value in ctx.hoisted.again()]
        saved[:inputs] = [values[k] for k in program.saved_inputs]
        saved[-1] = call.forward([*values, *state], training=True)[-1]
    ctx.spent = bool(program.over)
    return call.backward(saved, grads, wanted)  # type: ignore[no-any-return]


def _differentiable(
    call: _Call, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool], graph: bool
) -> list[Tensor | None]:
    """Gradients by PyTorch, from a replay of the loop step by step; with `graph`, differentiable."""
    # new views, since a carried state also depends on the parameters, by a path outside this call
    tensors = [t.view_as(t) for t in tensors]
    given, inputs = list(tensors), len(call.program.step.inputs)
    if call.outer:
        given[:inputs] = [packed(t, call.rows) if call.ragged else t.flatten(0, 1) for t in tensors[:inputs]]
    outputs = replay(call.program, call.rows, given)
    if call.outer:
        ys, rows = outputs[0], call.rows
        outputs[0] = padded(ys, rows) if call.ragged else ys.view(rows.count, rows.time, *ys.shape[1:])
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], chosen, [grad for _, grad in pairs], create_graph=graph, allow_unused=True
        )
    )
    return [next(found) if want else None for want in wanted]

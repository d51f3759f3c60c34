"""The call tables of a program's backward loop, and of the sums over all steps after it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from everstep.backends.fused.codegen.steps import leading
from everstep.backends.fused.row_graph import Shape, View
from everstep.backends.fused.runtime.forward_table import (
    CALLERS,
    INNER,
    ONCE,
    ROWS,
    STEPS,
    THREADS,
    LoopTable,
    Maker,
    place,
)
from everstep.backends.fused.runtime.program import Program
from everstep.native.c_tables import NULL, OverSteps, OverThreads, Slot, Way, argument
from everstep.native.kernels import Kernels
from everstep.native.products import columns, over_steps

READY, SHARED, PROJECTED = -1, -2, -3
"""Kinds of input gradients: an array over steps; equal to that of another input; in the caller's layout."""


@dataclass(frozen=True, eq=False, slots=True)
class BackwardTable(LoopTable):
    """The table of the backward loop.

    Its given arrays are: saved inputs, constants, start state, initial state, outputs, saved values, and the existing
    gradients of outputs and final state.

    Attributes:
        packed: indices of inputs that are also needed without padding; these follow the allocated arrays.
        joined: indices of start and initial state that are needed as one array; these follow the packed ones.
        sums: rows and columns of every product over steps.
        padded: bytes per step of arrays that get padding.
        results: for each tensor that is not an input, the location of its gradient, and whether to transpose it;
            several gradients of one tensor are added.
        inputs: for each wanted input, the location of its gradient, its shape per step, and the constant to multiply it
            by, or one of `READY`, `SHARED`, `PROJECTED`.
    """

    packed: tuple[int, ...]
    joined: tuple[tuple[int, int], ...]
    sums: tuple[tuple[int, int], ...]
    padded: int
    results: tuple[tuple[int, int, bool], ...]
    inputs: tuple[tuple[int, Slot, Shape, int], ...]


def backward_table(
    program: Program,
    library: Kernels,
    resets: bool,
    ragged: bool,
    projections: bool,
    wanted: Sequence[bool],
    present: Sequence[bool],
    row_major: Collection[int],
) -> BackwardTable:
    """The table of the backward loop.

    Args:
        program, library, resets, ragged, projections: see `forward_table`.
        wanted: which gradients of inputs, constants, start state and initial state to compute.
        present: which gradients of outputs and final state exist.
        row_major: the constants of `Program.upright` that are contiguous.
    """
    return _Backward(program, library, resets, ragged).write(projections, wanted, present, row_major)


@dataclass(frozen=True, slots=True)
class _Sum:
    """A product over steps: gᵀ·x with the gradients g of all steps, or xᵀ·g.

    Attributes:
        number, transposed: the constant whose gradient it is, and whether it is the transpose.
        gradient: index of g among the gradients of every step.
        operand: x, if it is a value of the loop.
        factor: otherwise, the index of x among the inputs.
        row_major: whether to compute xᵀ·g, so that the gradient of a contiguous parameter is contiguous.
    """

    number: int
    transposed: bool
    gradient: int
    operand: View | None = None
    factor: int = -1
    row_major: bool = False


class _Backward(Maker):
    def write(
        self, projections: bool, wanted: Sequence[bool], present: Sequence[bool], row_major: Collection[int]
    ) -> BackwardTable:
        program, step, given, arrays = self.program, self.program.step, self.given, self.arrays
        want_x, want_c, want_start, want_held, want_initial = program.split(wanted)
        inputs = dict(zip(program.saved_inputs, given.come(len(program.saved_inputs)), strict=True))
        constants, start, initial = self.come_constants()
        arrays["y0"], kept = given.come(2)
        came = iter(given.come(sum(present), even=True))
        for k in program.needed:
            arrays[f"x{k}"] = self.hosted(kept, k) if k in step.factors else inputs[k]
        self.lay(kept, inputs)
        self._states([next(came) if there else None for there in present], start, initial, want_start, want_initial)
        self._gradients(want_x, want_c, want_held)
        projected = [k for k in program.projections if projections and want_x[k]]
        for k in projected:
            arrays[f"dx_raw{k}"] = given.make(CALLERS, (step.factors[k][1],))
        results: list[tuple[int, int, bool]] = []
        totals = self._totals(want_c, results)
        sums = self._sums(want_c, row_major)
        outs = [given.make(ONCE, self._shape(one)) for one in sums]
        self._holds(want_held, results)
        packed = sorted({one.factor for one in sums if one.row_major and self.ragged})
        bare = dict(zip(packed, given.come(len(packed)), strict=True))
        previous = {one.operand.node.key[1] for one in sums if one.operand and one.operand.node.key[0] == "prev"}
        joined = sorted(previous) if self.resets else []
        others = dict(enumerate(start)) | dict(zip(joined, given.come(len(joined)), strict=True))
        products = [self._over_steps(one, out, inputs, bare, others) for one, out in zip(sums, outs, strict=True)]
        paddings = [self.padding(arrays[f"dx_raw{k}"], step.factors[k][1]) for k in projected] if self.ragged else []
        results += [
            (program.ends[0] + one.number, place(out), one.transposed) for one, out in zip(sums, outs, strict=True)
        ]
        results += self._state_results(want_start, want_initial)
        then, then_table = 0, []
        if products or totals or paddings:
            then = columns(program.dtype, self.library.bf16)
            then_table = over_steps(products, totals, paddings)
        matrices = program.backward_matrices
        known = self.common(
            program.loops.backward, program.backward_code, constants, matrices, bool(projected), then, then_table
        )
        return BackwardTable(
            **known,
            packed=tuple(place(inputs[k]) for k in packed),
            joined=tuple((place(start[k]), place(initial[k])) for k in joined),
            sums=tuple(self._shape(one) for one in sums),
            padded=sum(padding.each for padding in paddings),
            results=tuple(results),
            inputs=self._of_inputs(want_x, projected),
        )

    def _states(
        self,
        grads: Sequence[Slot | None],
        start: Sequence[Slot],
        initial: Sequence[Slot],
        want_start: Sequence[bool],
        want_initial: Sequence[bool],
    ) -> None:
        """Place the gradients of outputs and final state, and of start and initial state."""
        step, arrays = self.program.step, self.arrays
        arrays["dy0"] = grads[0] or self.given.make(CALLERS, step.output.shape, zero=True)
        for k, (shape, grad) in enumerate(zip(step.states, grads[1:], strict=True)):
            arrays[f"start{k}"] = grad or NULL
            arrays[f"before{k}"] = start[k]
            if want_start[k]:
                arrays[f"end{k}"] = self.given.make(ROWS, shape)
            if self.resets:
                arrays[f"before_init{k}"] = initial[k]
                if want_initial[k]:
                    arrays[f"init{k}"] = self.given.make(ROWS, shape, zero=True)

    def _holds(self, want_held: Sequence[bool], results: list[tuple[int, int, bool]]) -> None:
        """The gradients of what of the state is only read."""
        for k in [k for k in self.program.adjoint.held if want_held[k]]:
            array = self.arrays[f"hold{k}"] = self.given.make(ROWS, self.program.step.held[k], zero=True)
            results.append((self.program.ends[2] + k, place(array), False))

    def _state_results(self, want_start: Sequence[bool], want_initial: Sequence[bool]) -> list[tuple[int, int, bool]]:
        """Where the gradients of start and initial state are found, as in `BackwardTable.results`."""
        _, start, _, initial = self.program.ends
        wanted = [("end", start, want_start), ("init", initial, want_initial)]
        return [
            (first + k, place(self.arrays[f"{name}{k}"]), False)
            for name, first, wants in wanted
            for k, want in enumerate(wants)
            if want
        ]

    def _gradients(self, want_x: Sequence[bool], want_c: Sequence[bool], want_held: Sequence[bool]) -> None:
        """Place the gradients of every step that are wanted, or from which others are computed."""
        program, factors = self.program, self.program.step.factors
        used = {m for k, m in program.of_input.items() if want_x[k] or (k in factors and want_c[factors[k][0]])}
        pairs = zip(program.of_product, program.adjoint.products, strict=True)
        used |= {m for m, p in pairs if want_c[p.matrix]}
        used |= {m for a in program.held_products if want_held[a.leaf] for m in (a.left, a.right)}
        given = {m for k, m in program.of_input.items() if want_x[k] and k not in factors}
        for m in sorted(used):
            over = program.over.get(m)
            if over is not None:
                self.arrays[f"g{m}"] = self.arrays[f"x{over}"]
            elif m in given:
                self.arrays[f"g{m}"] = self.given.make(STEPS, program.gradients[m].shape)
            else:
                self.arrays[f"g{m}"] = self.given.make(INNER, (math.prod(program.gradients[m].shape),))

    def _totals(self, want_c: Sequence[bool], results: list[tuple[int, int, bool]]) -> list[OverThreads]:
        """The sums over threads; parameters with equal gradients get separate sums, since memory is not shared."""
        program, totals = self.program, []
        for k, m in program.of_constant.items():
            if not want_c[k]:
                continue
            size = math.prod(program.totals[m].shape)
            by = leading(size, program.bytes)
            if f"sum{m}" not in self.arrays:
                self.arrays[f"sum{m}"] = self.given.make(THREADS, (2 * by,))
            out = self.given.make(ONCE, program.step.constants[k])
            parts = self.arrays[f"sum{m}"].behind(by * program.bytes)
            totals.append(OverThreads(parts, argument("threads"), 2 * by, size, out))
            results.append((len(program.step.inputs) + k, place(out), False))
        return totals

    def _sums(self, want_c: Sequence[bool], row_major: Collection[int]) -> list[_Sum]:
        program, found = self.program, []
        transposed = program.outside.transposed
        for one, m in zip(program.adjoint.products, program.of_product, strict=True):
            if want_c[one.matrix]:
                found.append(_Sum(one.matrix, one.matrix not in transposed, m, one.operand))
        for k in program.projections:
            number = program.step.factors[k][0]
            if want_c[number]:
                as_is = number not in transposed and number in row_major
                found.append(
                    _Sum(number, not as_is and number not in transposed, program.of_input[k], None, k, row_major=as_is)
                )
        return found

    def _shape(self, one: _Sum) -> tuple[int, int]:
        """The rows and columns of the sum."""
        width = math.prod(self.program.gradients[one.gradient].shape)
        if one.operand is not None:
            return width, math.prod(one.operand.shape)
        depth = self.program.step.factors[one.factor][1]
        return (depth, width) if one.row_major else (width, depth)

    def _over_steps(
        self,
        one: _Sum,
        out: Slot,
        inputs: dict[int, Slot],
        bare: dict[int, Slot],
        others: dict[int, Slot],
    ) -> OverSteps:
        """The description of a sum. `inputs`: as saved; `bare`: without padding; `others`: states before the first."""
        program, steps = self.program, argument("steps")
        rows, columns = self._shape(one)
        gradient = self.arrays[f"g{one.gradient}"]
        if one.operand is None:
            raw = inputs[one.factor]
            if one.row_major:
                raw = bare.get(one.factor, raw)
                return OverSteps(raw, rows, gradient, columns, steps, rows, columns, out, columns)
            way = Way.USED if self.ragged else Way.ALL
            return OverSteps(gradient, rows, raw, columns, steps, rows, columns, out, columns, way)
        kind, k = one.operand.node.key
        name = program.sequence(k) if kind == "prev" else f"{kind}{k}"
        size, offset = one.operand.node.size, one.operand.place.offset * program.bytes
        operand = self.arrays[name].behind(offset)
        padded = self.ragged and name in program.outer
        known = gradient, rows, operand, size, steps, rows, columns, out, columns
        if kind == "prev":
            return OverSteps(*known, Way.USED_BEFORE if padded else Way.BEFORE, others[k].behind(offset), size)
        return OverSteps(*known, Way.USED if padded else Way.ALL)

    def _of_inputs(self, wanted: Sequence[bool], projected: Sequence[int]) -> tuple[tuple[int, Slot, Shape, int], ...]:
        program, factors = self.program, self.program.step.factors
        found: list[tuple[int, Slot, Shape, int]] = []
        given: set[int] = set()
        for k, m in program.of_input.items():
            if wanted[k] and k in projected:
                found.append((k, self.arrays[f"dx_raw{k}"], (factors[k][1],), PROJECTED))
            elif wanted[k]:
                then = factors[k][0] if k in factors else SHARED if m in given else READY
                found.append((k, self.arrays[f"g{m}"], program.gradients[m].shape, then))
                given.add(m)
        return tuple(found)

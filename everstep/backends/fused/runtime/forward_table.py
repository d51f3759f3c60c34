"""The call tables of a program's loops, which map slots to the arrays of a call.

They do not depend on sizes. A program has few tables, each created when it is first needed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from everstep.backends.fused.codegen.writer import FREE, Code
from everstep.backends.fused.row_graph import Shape
from everstep.backends.fused.runtime.program import Program
from everstep.backends.fused.runtime.work_layout import table
from everstep.native.c_tables import NULL, Arguments, Entry, Padding, Slot
from everstep.native.call_table import CallTable
from everstep.native.kernels import Kernels
from everstep.native.products import columns, over_steps

ONCE, ROWS, STEPS, CALLERS, THREADS, INNER = range(6)
"""The first dimensions of an array: none, rows, valid steps, the caller's steps, threads; INNER: valid steps, of a flat
array that no caller sees."""
FIRST = len(Arguments._fields)


@dataclass(frozen=True, eq=False, slots=True)
class LoopTable:
    """The tables of a call; its arrays are the given ones, followed by those that the call allocates.

    Attributes:
        call_table: the tables.
        numbers: the ctypes type of the call's numbers.
        even: indices of arrays that must be contiguous.
        made: dimensions of the allocated arrays.
        zero: indices of allocated arrays that are initialised to zero.
        strided: indices of the matrices whose strides the call provides.
    """

    call_table: CallTable
    numbers: Any
    even: tuple[int, ...]
    made: tuple[tuple[int, Shape], ...]
    zero: tuple[int, ...]
    strided: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class ForwardTable(LoopTable):
    """The table of the forward loop. Its given arrays are: inputs, constants, start state, read-only leaves, initial
    state.

    Attributes:
        ys: index of the outputs, which the final state follows, and in training the saved values.
        before: products of inputs that are computed before the loop: input, constant, and target; None for further
            arrays after the allocated ones.
        padded: bytes per step of outputs that get padding, or 0.
    """

    ys: int
    before: tuple[tuple[int, int, Slot | None], ...]
    padded: int


class Given:
    """The arrays of a call, in order."""

    def __init__(self) -> None:
        self.count = 0
        self.made: list[tuple[int, Shape]] = []
        self.even: list[int] = []
        self.zero: list[int] = []

    def come(self, count: int, even: bool = False) -> list[Slot]:
        """Add `count` given arrays; `even`: they must be contiguous."""
        places = range(self.count, self.count + count)
        self.count += count
        if even:
            self.even += places
        return [Slot(FIRST + place) for place in places]

    def make(self, first: int, shape: Shape, *, zero: bool = False) -> Slot:
        """Add an allocated array."""
        self.made.append((first, shape))
        if zero:
            self.zero.append(self.count)
        return self.come(1)[0]


def place(slot: Slot) -> int:
    """The index of a slot's array among the arrays of a call."""
    return slot.at - FIRST


class Maker:
    """The common part of both loops' tables."""

    def __init__(self, program: Program, library: Kernels, resets: bool, ragged: bool):
        self.program, self.library, self.resets, self.ragged = program, library, resets, ragged
        self.given = Given()
        self.arrays: dict[str, Slot] = {FREE: Slot(-1, program.free)}

    def come_constants(self) -> tuple[list[Slot], list[Slot], list[Slot]]:
        """Add constants, start state and initial state; read-only leaves are assigned to their arrays."""
        constants = self.given.come(len(self.program.step.constants))
        for k in self.program.elementwise:
            self.given.even.append(place(constants[k]))
            self.arrays[f"const{k}"] = constants[k]
        start = self.given.come(len(self.program.states), even=True)
        for k, slot in enumerate(self.given.come(len(self.program.step.held), even=True)):
            self.arrays[f"held{k}"] = slot
        initial = self.given.come(len(self.program.states) if self.resets else 0, even=True)
        return constants, start, initial

    def lay(self, kept: Slot, inputs: dict[int, Slot]) -> None:
        """Place the arrays that the forward loop saves for the backward loop."""
        program = self.program
        for name in program.kept_sizes:
            self.arrays[name] = kept.behind(0, program.kept_places[name] * program.bytes)
        for k, home in program.homes.items():
            host = self.hosted(kept, home.host) if home.host in program.step.factors else inputs[home.host]
            self.arrays[f"saved{k}"] = host.behind(home.offset * program.bytes)

    def hosted(self, kept: Slot, k: int) -> Slot:
        """The location of a saved input that the loop computes."""
        return kept.behind(0, self.program.kept_places[f"x{k}"] * self.program.bytes)

    def common(
        self,
        loop: int,
        code: Code,
        constants: Sequence[Slot],
        matrices: Sequence[tuple[int, bool]],
        projections: bool,
        then: int,
        then_table: Sequence[Entry],
    ) -> dict[str, Any]:
        """The fields of `LoopTable`."""
        factors = [(constants[number], transposed) for number, transposed in matrices]
        strides = FIRST + self.given.count
        entries, jobs, packs = table(self.library, code, self.arrays, factors, strides, projections, self.ragged)
        return {
            "call_table": CallTable(loop, entries, jobs, packs, then, then_table),
            "numbers": ctypes.c_int64 * (strides + 2 * packs),
            "even": tuple(self.given.even),
            "made": tuple(self.given.made),
            "zero": tuple(self.given.zero),
            "strided": tuple(place(matrix) for matrix, _ in factors[:packs]),
        }

    def padding(self, array: Slot, size: int) -> Padding:
        """The description of padding in a caller's array."""
        return Padding(array, size * self.program.bytes)


def forward_table(
    program: Program, library: Kernels, training: bool, resets: bool, ragged: bool, projections: bool, stored: bool
) -> ForwardTable:
    """The table of the forward loop.

    Args:
        program, library: the program and the kernels.
        training: whether the loop saves values for backward.
        resets, ragged: whether there are resets, and padding in the caller's arrays.
        projections: whether the loop computes products of inputs.
        stored: whether their results are stored.
    """
    made = Maker(program, library, resets, ragged)
    step, given, arrays = program.step, made.given, made.arrays
    inputs = dict(enumerate(given.come(len(step.inputs))))
    constants, start, initial = made.come_constants()
    ys = arrays["y0"] = given.make(CALLERS, step.output.shape)
    arrays |= {f"{'x_raw' if k in step.factors else 'x'}{k}": slot for k, slot in inputs.items()}
    for k, shape in enumerate(step.states):
        arrays[f"start{k}"], arrays[f"end{k}"] = start[k], given.make(ROWS, shape)
        if resets:
            arrays[f"init{k}"] = initial[k]
    kept = NULL
    if training:
        kept = given.make(INNER, (program.kept_numbers,))
        made.lay(kept, inputs)
    before = []
    for k, (number, _) in step.factors.items():
        hosted = training and f"x{k}" in program.kept_places
        if stored or (hosted and not projections):
            arrays[f"x{k}"] = made.hosted(kept, k)
        elif not projections:
            arrays[f"x{k}"] = given.come(1)[0]
        if not projections:
            before.append((k, number, arrays[f"x{k}"] if hosted else None))
    paddings = [made.padding(ys, math.prod(step.output.shape))] if ragged else []
    then_table = over_steps([], [], paddings) if ragged else []
    then = columns(program.dtype) if ragged else 0
    known = made.common(
        program.loops.forward, program.forward_code, constants, program.forward_matrices, projections, then, then_table
    )
    return ForwardTable(**known, ys=place(ys), before=tuple(before), padded=sum(one.each for one in paddings))

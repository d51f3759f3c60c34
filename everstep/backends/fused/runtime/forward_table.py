"""The tables of a program's two loops: which array of a call is meant by which slot.

Nothing in them depends on sizes: a program has few, and each is made when it is first needed.
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
from everstep.native.call_table import ARGUMENTS, NULL, CallTable, Slot
from everstep.native.kernels import Kernels
from everstep.native.products import Padding, columns, over_steps

ONCE, ROWS, STEPS, CALLERS, THREADS, INNER = range(6)
"""What there is one of in the first dimensions of an array: nothing, rows, steps, steps of the caller's, threads; or
steps, of one that no caller sees and that need not have dimensions."""
FIRST = len(ARGUMENTS)


@dataclass(frozen=True, eq=False, slots=True)
class LoopTable:
    """What a call is made of, given its arrays: those that come in, and behind them those that it makes.

    Attributes:
        call_table: its tables.
        numbers: the type of what it brings.
        even: places of arrays that are to be contiguous.
        made: dimensions of those that are made.
        zero: places of those among them that begin as zeros.
        strided: places of the matrices whose strides it brings.
    """

    call_table: CallTable
    numbers: Any
    even: tuple[int, ...]
    made: tuple[tuple[int, Shape], ...]
    zero: tuple[int, ...]
    strided: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class ForwardTable(LoopTable):
    """Of the loop forward. Given: inputs, constants, start state, what of it is only read, initial state.

    Attributes:
        ys: the place of the outputs; the final state is behind them, and in training what is kept.
        before: products of inputs that are computed before the loop: input, constant, and where they go; None: they are
            further arrays, behind all that are made.
        padded: bytes of a step of outputs that get padding, or 0.
    """

    ys: int
    before: tuple[tuple[int, int, Slot | None], ...]
    padded: int


class Given:
    """Arrays of a call, in order."""

    def __init__(self) -> None:
        self.count = 0
        self.made: list[tuple[int, Shape]] = []
        self.even: list[int] = []
        self.zero: list[int] = []

    def come(self, count: int, even: bool = False) -> list[Slot]:
        """So many that come in; `even`: they are to be contiguous."""
        places = range(self.count, self.count + count)
        self.count += count
        if even:
            self.even += places
        return [Slot(FIRST + place) for place in places]

    def make(self, first: int, shape: Shape, *, zero: bool = False) -> Slot:
        """One that is made."""
        self.made.append((first, shape))
        if zero:
            self.zero.append(self.count)
        return self.come(1)[0]


def place(slot: Slot) -> int:
    """Of an array among a call's."""
    return slot.at - FIRST


class Maker:
    """What both loops' tables have in common."""

    def __init__(self, program: Program, library: Kernels, resets: bool, ragged: bool):
        self.program, self.library, self.resets, self.ragged = program, library, resets, ragged
        self.given = Given()
        self.arrays: dict[str, Slot] = {FREE: Slot(-1, program.free)}

    def come_constants(self) -> tuple[list[Slot], list[Slot], list[Slot]]:
        """Constants, start state, initial state; what is only read goes to its arrays."""
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
        """Where the arrays are that the loop forward leaves for the one backward."""
        program = self.program
        for name in program.kept_sizes:
            self.arrays[name] = kept.behind(0, program.kept_places[name] * program.bytes)
        for k, home in program.homes.items():
            host = self.hosted(kept, home.host) if home.host in program.step.factors else inputs[home.host]
            self.arrays[f"saved{k}"] = host.behind(home.offset * program.bytes)

    def hosted(self, kept: Slot, k: int) -> Slot:
        """An input that the loop computes, where it is kept."""
        return kept.behind(0, self.program.kept_places[f"x{k}"] * self.program.bytes)

    def common(
        self,
        loop: int,
        code: Code,
        constants: Sequence[Slot],
        matrices: Sequence[tuple[int, bool]],
        projections: bool,
        then: int,
        then_table: Sequence[int | Slot],
    ) -> dict[str, Any]:
        """What `LoopTable` has."""
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
        """Of a caller's array."""
        return Padding(array, size * self.program.bytes)


def forward_table(
    program: Program, library: Kernels, training: bool, resets: bool, ragged: bool, projections: bool, stored: bool
) -> ForwardTable:
    """Of the loop forward.

    Args:
        program, library: what runs, and what multiplies.
        training: whether it leaves something for the loop backward.
        resets, ragged: whether there are any, and whether there is padding in the caller's arrays.
        projections: whether the loop computes products of inputs.
        stored: whether their results are kept.
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
        program.forward, program.forward_code, constants, program.forward_matrices, projections, then, then_table
    )
    return ForwardTable(**known, ys=place(ys), before=tuple(before), padded=sum(one.each for one in paddings))

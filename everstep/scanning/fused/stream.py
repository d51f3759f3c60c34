"""One step at a time, compiled: for what arrives as it happens, and for sampling."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from everstep.cell import Cell
from everstep.scanning.fused import build, cpu, toolchain
from everstep.scanning.fused.form import Entry, Form
from everstep.scanning.fused.lower import Lowered, lower
from everstep.scanning.fused.plan import End, Plan, plan
from everstep.scanning.fused.program import address
from everstep.scanning.fused.steps import Setting
from everstep.scanning.fused.table import Rows, layout, numbers, table
from everstep.scanning.fused.threads import GATE, Kernels, kernels
from everstep.scanning.record import Untraceable
from everstep.scanning.trace import trace
from everstep.state import State, leaves, unflatten


@dataclass(frozen=True)
class _Step:
    """A single step, compiled."""

    step: Lowered
    order: Plan
    code: cpu.Code
    run: int
    kernels: Kernels

    @property
    def elementwise(self) -> list[int]:
        """Constants that pointwise operations read."""
        read = {arg.node.key for node in self.order.nodes for arg in node.args if arg.node.op == "input"}
        return sorted(k for kind, k in read if kind == "const")


def _compile(cell: Cell, like: Tensor, initial: State) -> _Step | str:
    """The compiled step, or why there is none."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return "only float32 and float64 on the CPU are compiled"
    if toolchain.compiler() is None:
        return "no C++ compiler is found"
    try:
        counts = (len([*cell.parameters(), *cell.buffers()]), 1, len(leaves(initial)))
        step = lower(trace(cell, like[:, None]), counts, hoist=False)
        ends = [End("y", 0, step.output), *(End("next", k, view) for k, view in enumerate(step.following))]
        order = plan(step.builder, ends, "next")
        states = tuple(leaf[0].numel() for _, leaf in leaves(initial))
        sizes = {"x0": like.shape[1], "y0": cell.output_size}
        sizes |= {f"const{k}": torch.Size(shape).numel() for k, shape in enumerate(step.constants)}
        setting = Setting(False, states, sizes, frozenset(), frozenset(), (None,) * len(states), {})
        code = cpu.generate(order, setting, like.element_size())
        run = address(build.load(code.source, f"{type(cell).__name__}-step"))
        return _Step(step, order, code, run, kernels(like.dtype))
    except (Untraceable, toolchain.BuildError) as reason:
        return str(reason)


class Stream:
    """A cell that is fed one step after another, with its state kept inside: y_t = stream(x_t).

    The whole step, products of x included, is one compiled call, with the weights packed once. A weight that changes in
    place (an optimizer's step) is noticed. Where the cell cannot be compiled (see `reason`), its `step` runs.

    >>> import everstep as es
    >>> cell = es.LSTM(3, 5)
    >>> stream = es.Stream(cell)
    >>> xs = torch.randn(1, 4, 3)
    >>> ys = torch.stack([stream(x) for x in xs.unbind(1)], 1)
    >>> torch.allclose(ys, cell(xs)[0], atol=1e-6)
    True

    Args:
        cell: the cell, in eval mode.
        batch: rows that go side by side.
        state: to go on from; the cell's initial state if None.

    Attributes:
        state: a copy of the state after the last step; set it to go on from another.
        compiled, reason: whether the step is compiled, and why not.

    Known limits: no gradients; one thread of Python at a time; the cell should be in eval mode.
    """

    def __init__(self, cell: Cell, batch: int = 1, state: State = None):
        self.cell, self.batch = cell, batch
        parameter = next(cell.parameters(), torch.zeros(1))
        self._like = torch.zeros(batch, cell.input_size, dtype=parameter.dtype, device=parameter.device)
        self._initial = cell.initial_state(batch, self._like)
        self._parameters = [*cell.parameters(), *cell.buffers()]
        self._versions: tuple[int, ...] = ()
        self._state = [leaf.detach().clone().contiguous() for _, leaf in leaves(self._initial)]
        self._program = _compile(cell, self._like, self._initial)
        if state is not None:
            self.state = state

    @property
    def compiled(self) -> bool:
        """Whether the step is compiled."""
        return isinstance(self._program, _Step)

    @property
    def reason(self) -> str | None:
        """Why it is not."""
        return self._program if isinstance(self._program, str) else None

    @property
    def state(self) -> State:
        """A copy of the state."""
        return unflatten(self._initial, [leaf.clone() for leaf in self._state])

    @state.setter
    def state(self, state: State) -> None:
        for own, (_, given) in zip(self._state, leaves(state), strict=True):
            own.copy_(given)

    def reset(self) -> None:
        """Back to the initial state."""
        self.state = self.cell.initial_state(self.batch, self._like)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            x: (batch, input_size).
            out: where y is to be written, (batch, output_size) and contiguous; a new tensor if None.

        Raises:
            ValueError: x of another shape, dtype or device.
        """
        if x.shape != self._like.shape or x.dtype != self._like.dtype or x.device != self._like.device:
            raise ValueError(
                f"Stream({type(self.cell).__name__}): x should be {tuple(self._like.shape)} {self._like.dtype} on "
                f"{self._like.device}, but is {tuple(x.shape)} {x.dtype} on {x.device}"
            )
        if isinstance(self._program, str):
            return self._eager(x, out)
        versions = tuple([p._version for p in self._parameters])
        if versions != self._versions:
            self._prepare()
            self._versions = versions
        y = x.new_empty(self.batch, self.cell.output_size) if out is None else out
        if not x.is_contiguous():
            x = x.contiguous()
        self._brings[self._x], self._brings[self._y] = x.data_ptr(), y.data_ptr()
        self._program.kernels.call(self._form.address, ctypes.addressof(self._brings))
        return y

    def _eager(self, x: Tensor, out: Tensor | None) -> Tensor:
        with torch.no_grad():
            y, state = self.cell.step(x, unflatten(self._initial, self._state))
            for own, (_, leaf) in zip(self._state, leaves(state), strict=True):
                own.copy_(leaf)
        return y if out is None else out.copy_(y)

    def _prepare(self) -> None:
        """Pack the weights and fix all pointers but those of x and y."""
        program = self._program
        assert isinstance(program, _Step)
        with torch.no_grad():
            outside = program.step.before.forward(*self._parameters, self._like, self.batch)
        constants = outside[len(program.step.inputs) :]
        arrays = {f"const{k}": constants[k].to(self._like.dtype).contiguous() for k in program.elementwise}
        for k, leaf in enumerate(self._state):
            arrays[f"start{k}"] = arrays[f"end{k}"] = leaf
        arrays["x0"] = arrays["y0"] = self._like
        matrices = [constants[node.key] for node in program.order.products]
        order = torch.arange(self.batch, device="cpu")
        rows = Rows(order, order, torch.ones_like(order), order, None, self.batch, self.batch, 1)
        known = layout(
            program.kernels, program.code, self.batch, self.batch, True, False, False, torch.get_num_threads()
        )
        memory = self._like.new_empty(known.numbers)
        place = -(-memory.data_ptr() // 64) * 64
        gate = ctypes.create_string_buffer(GATE)
        brings = [*numbers(program.kernels, known, rows, place, gate=gate)]
        entries = {}
        for name, array in arrays.items():
            entries[name] = Entry(len(brings))
            brings.append(array.data_ptr())
        self._x, self._y = entries["x0"].at, entries["y0"].at
        factors = [(Entry(len(brings) + k), False) for k in range(len(matrices))]
        brings += [matrix.data_ptr() for matrix in matrices]
        told, jobs, packs = table(program.kernels, program.code, entries, factors, len(brings), False)
        brings += [stride for matrix in matrices for stride in matrix.stride()]
        self._brings = (ctypes.c_int64 * len(brings))(*brings)
        self._form = Form(program.run, told)
        self._held = arrays, rows, gate, memory
        packing = Form(0, told, jobs, packs)
        program.kernels.call(packing.address, ctypes.addressof(self._brings))

"""One compiled step at a time, for live input and for sampling."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any, NoReturn

import torch
from torch import Tensor

from everstep import hooks
from everstep.backends.fused.codegen import writer
from everstep.backends.fused.codegen.plan import End, Plan, plan
from everstep.backends.fused.codegen.steps import Setting
from everstep.backends.fused.lower import lower
from everstep.backends.fused.lowering import Lowered
from everstep.backends.fused.runtime.compiled_loops import address
from everstep.backends.fused.runtime.work_layout import Rows, layout, numbers, table
from everstep.cell import Cell
from everstep.native import build, toolchain
from everstep.native.c_tables import Slot, int64_array
from everstep.native.call_table import CallTable
from everstep.native.kernels import GATE, Kernels, kernels
from everstep.native.plain_memory import OPAQUE, alike, empty_cpu, plain
from everstep.state import State, as_large, check_nest, leaves, unflatten
from everstep.tracing.guards import modules, parameters
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import is_free, trace

END = object()  # follows what a cell has, so that one thing more, or less, is seen too


@dataclass(frozen=True)
class _Step:
    """A single step, compiled."""

    step: Lowered
    order: Plan
    code: writer.Code
    run: int
    kernels: Kernels


def _compile(cell: Cell, like: Tensor, initial: State) -> _Step | str:
    """The compiled step, or why there is none."""
    given = parameters(modules(cell))
    if any(is_free(leaf) for _, leaf in leaves(initial)):
        return "its state has sizes that each state brings: one step of such is not compiled"
    reason = _unfit(like, given, [leaf for _, leaf in leaves(initial)])
    if reason is not None:
        return reason
    try:
        step, order, code = written_step(cell, like, initial)
        run = address(build.load(code.source, f"{type(cell).__name__}-step", ["run"]))
        return _Step(step, order, code, run, kernels(like.dtype))
    except (Untraceable, toolchain.BuildError) as error:
        return str(error)


def written_step(cell: Cell, like: Tensor, initial: State) -> tuple[Lowered, Plan, writer.Code]:
    """One step as C++ that nobody has compiled yet: its graph of a row, the order of its work, and the source.

    Args:
        cell: whose step.
        like: (rows, input_size), of the dtype of its numbers.
        initial: its initial state.

    Raises:
        Untraceable: the step cannot be followed, or has what the engine does not know.
    """
    counts = (len(parameters(modules(cell))), 1, len(leaves(initial)))
    with _plainly():
        step = lower(trace(cell, like[:, None]), counts, hoist=False)
    ends = [End("y", 0, step.output), *(End("next", k, view) for k, view in enumerate(step.following))]
    order = plan(step.builder, ends, "next")
    states = tuple(leaf[0].numel() for _, leaf in leaves(initial))
    sizes = {"x0": like.shape[1], "y0": cell.output_size}
    sizes |= {f"const{k}": torch.Size(shape).numel() for k, shape in enumerate(step.constants)}
    setting = Setting(False, states, sizes, frozenset(), frozenset(), (None,) * len(states), {})
    return step, order, writer.generate(order, setting, like.element_size())


def constants_of(step: Lowered, cell: Cell, like: Tensor) -> list[Tensor]:
    """The constants of a step by their number, which its matrices and its elementwise operations read."""
    with _plainly():
        outside = step.before.forward(*parameters(modules(cell)), like, len(like))
        return [t.detach() for t in outside[len(step.inputs) :]]


def elementwise(order: Plan) -> list[int]:
    """Constants that pointwise operations read."""
    read = {arg.node.key for node in order.nodes for arg in node.args if arg.node.op == "input"}
    return sorted(k for kind, k in read if kind == "const")


def _unfit(like: Tensor, given: list[Tensor], states: list[Tensor]) -> str | None:
    """Why a step on such tensors cannot be compiled, or None."""
    if any(not t.is_cpu for t in (like, *given)) or like.dtype not in (torch.float32, torch.float64):
        return "only float32 and float64 on the CPU are compiled"
    if len(like) == 0:
        return "there are no rows"
    if not plain(like, *given, *states):
        return OPAQUE
    dtypes = {t.dtype for t in given if t.is_floating_point()}
    if not dtypes <= {like.dtype}:
        return f"numbers of one dtype are compiled, but got {', '.join(sorted(map(str, {like.dtype, *dtypes})))}"
    if toolchain.compiler() is None:
        return toolchain.missing()
    return None


@contextmanager
def _plainly() -> Iterator[None]:
    """Clear the caller's modes (device, inference, autocast, grad), since what is built here is kept."""
    with torch.device("cpu"), torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.no_grad():
        yield


def _counts(tensor: Tensor) -> bool:
    """Whether PyTorch counts the changes of a tensor, as it does unless it was made in inference mode."""
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False


class _Hooked(Cell):
    """A cell whose step is that of another cell, including its hooks."""

    def __init__(self, cell: Cell):
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell

    def _get_name(self) -> str:
        return str(self.cell._get_name())

    def initial_state(self, batch: int, like: Tensor) -> State:
        return self.cell.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, new = self.cell.step(x, state)
        return y, new


class Stream:
    """Runs a cell one step at a time and keeps its state: y_t = stream(x_t).

    The whole step, including the products of x, is one compiled call, with the weights packed once. Changes to weights
    are detected: in-place updates (an optimizer step), new data, another dtype, replacement. If the cell cannot be
    compiled (see `reason`), its `step` runs.

    >>> import everstep as es
    >>> cell = es.LSTM(3, 5)
    >>> stream = es.Stream(cell)
    >>> xs = torch.randn(1, 4, 3)
    >>> ys = torch.stack([stream(x) for x in xs.unbind(1)], 1)
    >>> torch.allclose(ys, cell(xs)[0], atol=1e-6)
    True

    Args:
        cell: the cell, in eval mode.
        batch: number of rows.
        state: the state to continue from; the cell's initial state if None.

    Attributes:
        state: a copy of the state after the last step; assign to it to continue from another.
        compiled, reason: whether the step is compiled, and why not.

    Raises:
        TypeError: `cell` is not a cell, or the state is a different nest.
        ValueError: `batch` is negative, or the state has another shape.

    Known limits: no gradients; one Python thread at a time; the cell should be in eval mode. Changes that are not
    detected: writes through `weight.data` (`weight.data.mul_(2)`) or into weights created in inference mode, whose
    versions PyTorch does not count (use `torch.no_grad()`); module attributes other than parameters, buffers and
    submodules; hooks that are added or removed.
    """

    _ready: tuple[Any, ...] | None
    """What a compiled step reads, in one place; None before the weights are packed."""

    def __init__(self, cell: Cell, batch: int = 1, state: State = None):
        if not isinstance(cell, Cell):
            raise TypeError(f"Stream: expected a Cell, which has a step, but got {type(cell).__name__}")
        if batch < 0:
            raise ValueError(f"Stream({type(cell).__name__}): batch should be at least 0, but is {batch}")
        self.cell, self.batch = cell, batch
        self._state: list[Tensor] = []
        self._build()
        if state is not None:
            self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        """For `copy` and `pickle`: the cell and a copy of the state; the copy packs its own weights."""
        return type(self), (self.cell, self.batch, self.state)

    def _build(self) -> None:
        """Read the cell as it is now; keep the state if the shapes of its leaves are unchanged."""
        cell, before = self.cell, self._state
        inside = modules(cell)
        self._tensors = parameters(inside)
        self._kinds = self._kinds_now()
        held = [names for m in inside for names in (m._parameters, m._buffers, m._modules) if names]
        self._places: list[Collection[Any]] = [*(names.values() for names in held), (END,)]
        self._inside = list(chain.from_iterable(self._places))
        parameter = next(cell.parameters(), torch.zeros(1))
        with torch.no_grad(), torch.inference_mode(False):
            self._like = torch.zeros(self.batch, cell.input_size, dtype=parameter.dtype, device=parameter.device)
            blank = self._like.new_empty(self.batch, cell.output_size)
            self._initial = cell.initial_state(self.batch, self._like)
            self._state = [leaf.detach().clone().contiguous() for _, leaf in leaves(self._initial)]
            if len(before) == len(self._state):
                like = as_large(self._initial, unflatten(self._initial, before))
                if [leaf.shape for leaf in before] == [leaf.shape for _, leaf in leaves(like)]:
                    self._take(before)
        self._shape, self._blank = tuple(self._like.shape), (tuple(blank.shape), blank.stride(), blank.dtype)
        # tracing leaves the cell's own hooks to the sequence call; here they belong to the step
        self._program = _compile(_Hooked(cell) if hooks.hooked(cell) else cell, self._like, self._initial)
        self._ready = None

    def _kinds_now(self) -> list[tuple[Any, ...]]:
        return [(t.shape, t.dtype, t.device) for t in self._tensors]

    def _follow(self) -> None:
        """Update to the changes of the cell's tensors."""
        same = all(map(is_, chain.from_iterable(self._places), self._inside))
        if not same or self._kinds_now() != self._kinds:
            self._build()
        if self.compiled:
            self._prepare()

    @property
    def compiled(self) -> bool:
        """Whether the step is compiled."""
        return isinstance(self._program, _Step)

    @property
    def reason(self) -> str | None:
        """Why the step is not compiled."""
        return self._program if isinstance(self._program, str) else None

    @property
    def state(self) -> State:
        """A copy of the state."""
        return unflatten(self._initial, [leaf.clone() for leaf in self._state])

    @state.setter
    def state(self, state: State) -> None:
        check_nest(f"Stream({type(self.cell).__name__})", state, as_large(self._initial, state))
        self._take([leaf for _, leaf in leaves(state)])

    def _take(self, values: list[Tensor]) -> None:
        """Copy these leaves into the existing buffers; allocate new ones only where sizes differ."""
        with torch.no_grad():
            for k, (own, given) in enumerate(zip(self._state, values, strict=True)):
                if own.shape == given.shape:
                    own.copy_(given)
                else:
                    self._state[k] = given.detach().to(own).clone(memory_format=torch.contiguous_format)

    def reset(self) -> None:
        """Back to the initial state."""
        self.state = self.cell.initial_state(self.batch, self._like)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            x: (batch, input_size).
            out: tensor for y, (batch, output_size) and contiguous; a new one if None.

        Raises:
            ValueError: x or out of another shape, dtype or device, or out not contiguous.
        """
        # what comes at each step of live input takes as little of Python as can be: weights evict it from the caches
        if self._ready is None:
            return self._followed(x, out)
        places, inside, watched, uncounted, blank, brings, at_x, at_y, run, form, address = self._ready
        if not all(map(is_, chain.from_iterable(places), inside)):
            return self._followed(x, out)
        for tensor, version, pointer in watched:
            if tensor._version != version or tensor.data_ptr() != pointer:
                return self._followed(x, out)
        for tensor, pointer in uncounted:
            if tensor.data_ptr() != pointer:
                return self._followed(x, out)
        if out is not None or not self._seen(x):
            return self._checked(x, out)
        y = empty_cpu(*blank)
        brings[at_x], brings[at_y] = x.data_ptr(), y.data_ptr()
        run(form, address)
        return y

    def _followed(self, x: Tensor, out: Tensor | None) -> Tensor:
        """A step of a cell that may have changed."""
        self._follow()
        return self._checked(x, out)

    def _checked(self, x: Tensor, out: Tensor | None) -> Tensor:
        """A step whose arguments are anything."""
        like = self._like
        if x.shape != self._shape or x.dtype is not like.dtype or x.device != like.device:
            self._refuse("x", x, self._shape)
        size = self._blank[0]
        if out is not None and (out.shape != size or out.dtype is not like.dtype or out.device != like.device):
            self._refuse("out", out, size)
        if out is not None and not out.is_contiguous():
            raise ValueError(f"Stream({type(self.cell).__name__}): out should be contiguous, but has gaps")
        if self._ready is None or not plain(x) or (out is not None and not plain(out)):
            return self._eager(x, out)
        brings, at_x, at_y, run, form, address = self._ready[-6:]
        if not x.is_contiguous():
            x = x.contiguous()
        elif out is None:
            self._seen = alike(x)
        y = empty_cpu(*self._blank) if out is None else out
        brings[at_x], brings[at_y] = x.data_ptr(), y.data_ptr()
        run(form, address)
        return y

    def step_from(self, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step from a state of its own, both given and returned as leaves in the order of `everstep.state.leaves`.

        For many sequences that take turns. Arguments and errors as in a call.

        Raises:
            ValueError: the leaves are not as many as those of the state, or have other shapes.
        """
        if len(state) != len(self._state) or any(a.shape != b.shape for a, b in zip(state, self._state, strict=True)):
            self.state = unflatten(self._initial, state)  # which says what is wrong
        else:
            self._take(list(state))
        y = self(x)
        return y, tuple([leaf.clone() for leaf in self._state])

    def _refuse(self, name: str, value: Tensor, shape: tuple[int, ...]) -> NoReturn:
        raise ValueError(
            f"Stream({type(self.cell).__name__}): {name} should be {shape} {self._like.dtype} on {self._like.device}, "
            f"but is {tuple(value.shape)} {value.dtype} on {value.device}"
        )

    def _eager(self, x: Tensor, out: Tensor | None) -> Tensor:
        with torch.no_grad():
            # copies: the step may return its inputs, and may write over them
            y, state = self.cell.step(x.clone(), self.state)
            for own, (_, leaf) in zip(self._state, leaves(state), strict=True):
                own.copy_(leaf)
        # a copy, since the step may return x itself
        return y.clone() if out is None else out.copy_(y)

    def _prepare(self) -> None:
        """Pack the weights and set all pointers except those of x and y."""
        program = self._program
        assert isinstance(program, _Step)
        with _plainly():
            # holds their memory, so that new data of a parameter has another address
            constants = constants_of(program.step, self.cell, self._like)
            before = [t.detach() for t in self._tensors]
        arrays = {f"const{k}": constants[k].to(self._like.dtype).contiguous() for k in elementwise(program.order)}
        for k, leaf in enumerate(self._state):
            arrays[f"start{k}"] = arrays[f"end{k}"] = leaf
        arrays["x0"] = arrays["y0"] = self._like
        matrices = [constants[node.key] for node in program.order.products]
        order = torch.arange(self.batch, device="cpu")
        rows = Rows(order, order, torch.ones_like(order), order, self.batch, self.batch, 1)
        known = layout(
            program.kernels, program.code, self.batch, self.batch, True, False, False, torch.get_num_threads()
        )
        memory = self._like.new_empty(known.numbers)
        place = -(-memory.data_ptr() // 64) * 64
        gate = ctypes.create_string_buffer(GATE)
        brings = [*numbers(program.kernels, known, rows, place, gate=gate)]
        entries = {}
        for name, array in arrays.items():
            entries[name] = Slot(len(brings))
            brings.append(array.data_ptr())
        factors = [(Slot(len(brings) + k), False) for k in range(len(matrices))]
        brings += [matrix.data_ptr() for matrix in matrices]
        told, jobs, packs = table(program.kernels, program.code, entries, factors, len(brings), False)
        brings += [stride for matrix in matrices for stride in matrix.stride()]
        form, packing, given = CallTable(program.run, told), CallTable(0, told, jobs, packs), int64_array(brings)
        run, address = program.kernels.call, ctypes.addressof(given)
        run(packing.address, address)
        self._held = arrays, rows, gate, memory, constants, before, form
        watched = [(t, t._version, t.data_ptr()) for t in self._tensors if _counts(t)]
        uncounted = [(t, t.data_ptr()) for t in self._tensors if not _counts(t)]
        self._seen = alike(self._like)
        looked_at = self._places, self._inside, watched, uncounted, self._blank
        self._ready = *looked_at, given, entries["x0"].at, entries["y0"].at, run, form.address, address

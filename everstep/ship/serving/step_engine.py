"""One step of a run for rows of many sessions at once. The result of a row is that of the row alone, bit for bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from everstep.networks.forms import Form, Named
from everstep.runs.capabilities import Exports
from everstep.runs.run import Run
from everstep.ship.loaded import ExportedRun, OnnxRuntime
from everstep.state import State, leaves, unflatten
from everstep.stream import Stream

Leaves: TypeAlias = tuple[Tensor, ...]
"""The state of one row: leaves (1, ...), which are never changed in place."""
Value: TypeAlias = int | Tensor
"""What one row reads in a step: a symbol, or numbers (features,)."""
SIZES = (1, 4, 16, 32, 64)
"""Numbers of rows for which a step is prepared. Rows that are missing are filled up."""


class Inlet(NamedTuple):
    """What a step reads.

    Attributes:
        name: its name.
        below: for symbols 0 … below − 1: the bound. 0: not known.
        features: for numbers, how many; None: it reads a symbol.
    """

    name: str
    below: int
    features: int | None


class Outcome(NamedTuple):
    """What a step gives for one row: its output (size,), and the new state."""

    output: Tensor
    state: Leaves


class StepEngine(ABC):
    """One step of a run.

    Attributes:
        reads: what it reads.
        output: the name of its output, such as "log_p".
        gives: how many numbers an output holds.
        most: most rows of a call.
        how: how it computes, in words.
    """

    reads: Inlet
    output: str
    gives: int
    most: int
    how: str

    @abstractmethod
    def initial(self) -> Leaves:
        """The state of a row before the first step."""

    @abstractmethod
    def step(self, values: Sequence[Value], states: Sequence[Leaves]) -> list[Outcome]:
        """One step of 1 to `most` rows. A row's result depends on its own value and state alone, bit for bit."""

    def size(self, state: Leaves, output: Tensor | None) -> int:
        """Bytes that a session with this state and last output holds."""
        return sum(leaf.nbytes for leaf in state) + (0 if output is None else output.nbytes)


class CompiledSteps(StepEngine):
    """The compiled step of a form, for 1, 4, 16, 32 and 64 rows; each number has its own packed weights.

    The compiled products of a row do not depend on other rows, so that any batch gives the bits of a row alone.

    Args:
        form: a step form with a cell.
        reads, output: see `StepEngine`.

    Attributes:
        reason: why the step is not compiled; None: it is.
    """

    how = "compiled, 64 rows at once"

    def __init__(self, form: Form, reads: Inlet, output: str):
        assert form.cell is not None
        self.reads, self.output, self.gives, self.most = reads, output, form.cell.output_size, SIZES[-1]
        self._table = form.table
        with torch.no_grad():
            self._nest: State = form.initial(1)
        self._streams = {}
        for rows in SIZES:
            self._streams[rows] = stream = Stream(form.cell, rows)
            self.reason = stream.reason
            if self.reason is not None:
                return
        self._dtype = next(form.model.parameters()).dtype

    def initial(self) -> Leaves:
        return tuple(leaf.clone() for _, leaf in leaves(self._nest))

    @torch.no_grad()
    def step(self, values: Sequence[Value], states: Sequence[Leaves]) -> list[Outcome]:
        count = len(values)
        rows = next(size for size in SIZES if size >= count)
        stream = self._streams[rows]
        fill = rows - count
        if rows == 1:
            y, after = stream.step_from(self._input(values[0]), states[0])
            return [Outcome(y[0], after)]
        x = self._inputs([*values, *[values[0]] * fill])
        joined = [torch.cat([*leaf, *leaf[:1] * fill]) for leaf in zip(*states, strict=True)]
        y, after = stream.step_from(x, joined)
        # copies, since a view would keep the state of all rows
        parts = [torch.split_copy(leaf[:count], 1) for leaf in (y, *after)]  # type: ignore[func-returns-value]
        return [Outcome(output[0], tuple(state)) for output, *state in zip(*parts, strict=True)]

    def _input(self, value: Value) -> Tensor:
        if isinstance(value, int):
            assert self._table is not None
            return self._table[value][None]
        return value[None].to(self._dtype)

    def _inputs(self, values: list[Value]) -> Tensor:
        if self._table is not None:
            return self._table[torch.tensor(values)]
        return torch.stack(values).to(self._dtype)  # type: ignore[arg-type]


class RowSteps(StepEngine):
    """A step that runs one row at a time, since products of several rows may differ from those of one in the last bits.

    Args:
        run: maps the input by name and a state to outputs by name and the new state, a nest of leaves (1, ...).
        nest: the state before the first step, leaves (1, ...).
        reads, output, gives, how: see `StepEngine`.
        device: where `run` wants its input; None: the CPU.
    """

    most = 1

    def __init__(
        self,
        run: Callable[[Named, State], tuple[Named, State]],
        nest: State,
        reads: Inlet,
        output: str,
        gives: int,
        how: str,
        device: torch.device | None = None,
    ):
        self._run, self._nest, self._device = run, nest, device
        self.reads, self.output, self.gives, self.how = reads, output, gives, how

    def initial(self) -> Leaves:
        return tuple(leaf.clone() for _, leaf in leaves(self._nest))

    @torch.no_grad()
    def step(self, values: Sequence[Value], states: Sequence[Leaves]) -> list[Outcome]:
        found = []
        for value, state in zip(values, states, strict=True):
            x = value[None] if isinstance(value, Tensor) else torch.tensor([value])
            # copies, since a step may write over what it is given, and return it
            given = {self.reads.name: x.to(device=self._device)}
            outputs, after = self._run(given, unflatten(self._nest, [leaf.clone() for leaf in state]))
            rows = tuple(leaf.detach().clone() for _, leaf in leaves(after))
            found.append(Outcome(outputs[self.output][0].detach().clone(), rows))
        return found


def engine_of(run: Run) -> StepEngine | str:
    """The step of a run, or the reason why it has none."""
    if isinstance(run, ExportedRun):
        return _of_runtime(run.runtime)
    if not isinstance(run.task, Exports):
        return "its job has no form of one step"
    form = run.task.exported(run.model).step
    if isinstance(form, str):
        return form
    if form.before is not None:
        return _begun_by(form.before.inputs)
    (name, *others), spec = form.inputs, next(iter(form.inputs.values()))
    sizes = spec.dims[1:]
    if others or len(sizes) > 1 or not all(isinstance(size, int) for size in sizes):
        return f"its step reads {', '.join(form.inputs)}, and sessions feed one symbol or one row of numbers"
    below = spec.below if isinstance(spec.below, int) else 0
    reads = Inlet(name, below, int(sizes[0]) if sizes else None)
    with torch.no_grad():
        nest = form.initial(1)
        x = torch.zeros(1, *sizes) if sizes else torch.zeros(1, dtype=torch.int64)  # type: ignore[arg-type]
        device = next(form.model.parameters()).device
        outputs, _ = form.run({name: x.to(device)}, nest)
    if len(outputs) != 1:
        return f"its step gives {', '.join(outputs)}, and sessions answer with one output"
    ((output, first),) = outputs.items()
    reason = "its step is not that of one cell"
    if form.cell is not None:
        compiled = CompiledSteps(form, reads, output)
        if compiled.reason is None:
            return compiled
        reason = compiled.reason
    how = f"in PyTorch, one row at a time: {reason}"
    return RowSteps(form.run, nest, reads, output, first[0].numel(), how, device)


def _of_runtime(runtime: OnnxRuntime) -> StepEngine | str:
    described = runtime.described("step")
    if described is None:
        return "the export has no step form; export it with --form both"
    if before := runtime.described("start"):
        return _begun_by(before["inputs"])
    inputs = {name: one for name, one in described["inputs"].items() if not _is_state(name, "state")}
    outputs = {name: one for name, one in described["outputs"].items() if not _is_state(name, "new_state")}
    if len(inputs) != 1 or len(outputs) != 1:
        return f"its step reads {', '.join(inputs)} and gives {', '.join(outputs)}; sessions have one of each"
    ((name, given),), ((output, gives),) = inputs.items(), outputs.items()
    is_symbol = given["dtype"] == "int64"
    below = int(gives["shape"][-1]) if is_symbol and isinstance(gives["shape"][-1], int) else 0
    features = None if is_symbol else int(given["shape"][-1])
    reads = Inlet(name, below, features)
    size = math.prod(dim for dim in gives["shape"][1:] if isinstance(dim, int))
    return RowSteps(runtime.step, runtime.initial(1), reads, output, size, "in onnxruntime, one row at a time")


def _begun_by(inputs: Iterable[str]) -> str:
    return f"its state begins with {', '.join(inputs)}, and sessions begin without"


def _is_state(name: str, kind: str) -> bool:
    return name == kind or name.startswith(f"{kind}.")

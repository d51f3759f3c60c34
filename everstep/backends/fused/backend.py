"""The compiled engine: traces, splits, differentiates, generates and compiles the step of any cell, and caches it.

PyTorch computes what depends on x alone for all steps at once (`split.py`). `lowering.py` turns the rest into a graph
of the numbers of one row (`row_graph.py`), whose derivative is another graph (`adjoint.py`). Both are ordered into
products and loops (`plan.py`), generated as C++ (`steps.py`, `writer.py`), compiled into a cache (`build.py`) and
called (`call.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from functools import lru_cache, partial
from time import monotonic as clock
from typing import Any

import torch
from torch import Tensor

from everstep.abstract import AbstractCell, AbstractGated
from everstep.backends import reference, vendor
from everstep.backends.fused.lower import lower
from everstep.backends.fused.runtime import call
from everstep.backends.fused.runtime.cell_cache import EFFECTS, cell_cache
from everstep.backends.fused.runtime.describe import describe
from everstep.backends.fused.runtime.family import Family, sizes
from everstep.backends.fused.runtime.hoisted import Hoisted
from everstep.backends.fused.runtime.packing import packed, padded
from everstep.backends.fused.runtime.program import Program
from everstep.backends.fused.runtime.shared_programs import share, shared_key, shared_program
from everstep.backends.fused.runtime.work_layout import Rows
from everstep.backends.protocol import Refusal, Run
from everstep.native import toolchain
from everstep.native.kernels import has_bf16
from everstep.native.locks import new_lock
from everstep.native.plain_memory import OPAQUE, plain, watched
from everstep.state import State, leaves, map_state, unflatten, valid
from everstep.tracing.guards import Snapshot, StaticSnapshot, fingerprint, modules, parameters, substituted
from everstep.tracing.refusals import Impure, Untraceable
from everstep.tracing.trace import trace

name = "fused"


class StepRefusal(Refusal):
    """The reason why a step cannot be compiled, with its line; reported to the user."""


class Hurry(StepRefusal):
    """The reason why a step is not compiled for now."""


class Effect(StepRefusal):
    """A side effect of a step, because of which it must be called at every time."""


_lock = new_lock()


class _Recent(threading.local):
    """The last argument and result of `_ragged` in this thread."""

    ragged: tuple[list[int], Rows] | None = None


_recent = _Recent()


def prepare(
    cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None, patient: bool = False
) -> Run | Refusal:
    """The run of the compiled loop, or the reason why not; `patient`: compile no matter how often."""
    reason = watched()
    if reason is not None:
        return Refusal(reason)
    if not (plain(xs) if isinstance(xs, Tensor) else plain(*[leaf for _, leaf in leaves(xs)])):
        return Refusal(OPAQUE)
    if not ((lengths is None or plain(lengths)) and (resets is None or plain(resets))):
        return Refusal(OPAQUE)
    program = _program(cell, xs, patient)
    if isinstance(program, Refusal):
        return program
    if torch.is_grad_enabled() and (failed := _no_backward(program)) is not None:
        return failed
    return partial(_run, program, cell, xs, lengths, resets)


def slower(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """The reason, if PyTorch's kernel for the same cell is known to be faster."""
    if vendor.refusal(cell, xs, lengths, resets) is not None:
        return None
    assert isinstance(cell, AbstractGated)
    kind = cell.vendor_kernel() or ""
    if torch.is_autocast_enabled("cpu"):
        if kind != "lstm" or not vendor.has_autocast_lstm():
            return None
        if has_bf16() and (torch.is_grad_enabled() or cell.hidden_size < 512):
            return None
        return f"autocast: PyTorch's LSTM is measured to be faster in {torch.get_autocast_dtype('cpu')}"
    whole = lengths is None and resets is None and xs.dtype == torch.float32
    if outrun(kind, cell.hidden_size, xs.shape[1], whole):
        return f"PyTorch's own {kind} is measured to be faster at this size"
    return None


def outrun(kind: str, hidden: int, steps: int, whole: bool) -> bool:
    """Whether `torch.lstm`, `gru`, … was measured to be faster than the loop (`benchmarks/engine.py`).

    `whole`: float32 and no ragged rows, for which oneDNN has an LSTM primitive.
    """
    if kind == "lstm" and whole:
        return torch.is_grad_enabled() and steps < 8 and hidden < 128
    return steps < (5 if kind.startswith("rnn") else 3)


def describe_step(cell: AbstractCell, xs: Any) -> str:
    """A description of the compiled loop, for `explain`."""
    program = _program(cell, xs)
    if isinstance(program, Refusal):
        return program
    whole = program.first if isinstance(program, Family) else program
    return describe(whole, len(leaves(xs)[0][1]))


def effect(cell: AbstractCell, xs: Any) -> str | None:
    """A side effect of the step, because of which it must be called at every time; None if there is none."""
    found = _program(cell, xs)
    if not isinstance(found, Refusal) or isinstance(found, StepRefusal):
        return found if isinstance(found, Effect) else None
    effects = cell_cache(cell).effects[cell.training]
    if not effects:  # not traced, since the compiled loop does not support it
        try:
            with torch.inference_mode(False):
                trace(cell, map_state(torch.Tensor.detach, xs), training=True)
            effects.append("")
        except Impure as reason:
            effects.append(str(reason))
        except Untraceable:
            effects.append("")
    return effects[-1] or None


def assume_static(cell: AbstractCell) -> None:
    """Declare that only the tensors of this cell change, with the same shapes, dtypes and ties; none is kept alive."""
    cell_cache(cell).snapshot = StaticSnapshot()


def _run(
    program: Program | Family, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None, state: State
) -> tuple[Tensor, State]:
    """Hoisted work in PyTorch, then one compiled loop over the valid steps."""
    parts = [xs] if isinstance(xs, Tensor) else [leaf for _, leaf in leaves(xs)]
    batch, time = parts[0].shape[:2]
    family = program if isinstance(program, Family) else None
    if isinstance(program, Family):
        size = program.size(state)
        if size is None:
            return reference.run(cell, xs, state, lengths, resets)
        program = program.at(size)
    rows = _rows(parts[0], lengths, resets)
    if rows.steps == 0:  # no steps: zeros with zero gradients
        return reference.run(cell, xs, state, lengths, resets)
    direct = program.outside.direct  # the loop itself skips padding in inputs that are passed directly
    if not direct:
        parts = [leaf.flatten(0, 1) if rows.whole else packed(leaf, rows) for leaf in parts]
    hoisted = Hoisted(program, cell_cache(cell).parameters(cell), parts, rows.steps)
    start = [leaf for _, leaf in leaves(state)]
    held: list[Tensor] = []
    if family is not None:
        start, held = family.parted(start)
    initial = []
    if resets is not None:
        initial = [leaf for _, leaf in leaves(cell.initial_state(batch, parts[0]))]
        if family is not None:
            initial, _ = family.parted(initial)
    ys, final = call.run(program, hoisted, rows, start, held, initial)
    if family is not None:
        final = family.joined(final, [leaf for _, leaf in leaves(state)])
    if not direct:
        ys = ys.view(batch, time, *ys.shape[1:]) if rows.whole else padded(ys, rows)
    return ys, unflatten(state, final)


def _no_backward(program: Program | Family) -> Refusal | None:
    """The reason why there is no loop backward; compiles it if it is not yet."""
    loops = (program.first if isinstance(program, Family) else program).loops
    try:
        loops.differentiable()
    except toolchain.BuildError as error:
        toolchain.notice("build", str(error))
        return Refusal(error)
    return None


def _rows(like: Tensor, lengths: Tensor | None, resets: Tensor | None) -> Rows:
    """The valid steps of a call."""
    batch, time = like.shape[:2]
    rows = _whole(batch, time) if lengths is None else _ragged(lengths, time)
    if resets is None:
        return rows
    return rows.reset_at(resets.flatten().clone() if lengths is None else resets[valid(lengths, time)])


def _ragged(lengths: Tensor, time: int) -> Rows:
    """Rows with these lengths. The last result is cached, since all layers of a model need the same."""
    values = lengths.tolist()
    recent = _recent.ragged
    if recent is not None and recent[1].time == time and recent[0] == values:
        return recent[1]
    length = torch.tensor(values, dtype=torch.int64, device="cpu")
    order = length.argsort(descending=True, stable=True)
    outer = torch.arange(len(length), device="cpu") * time
    rows = Rows(order, length.cumsum(0) - length, length, outer, len(values), sum(values), time)
    _recent.ragged = values, rows
    return rows


@lru_cache(64)
def _whole(batch: int, time: int) -> Rows:
    """Rows with `time` steps each."""
    order = torch.arange(batch, device="cpu")
    outer, length = order * time, torch.full((batch,), time, device="cpu")
    return Rows(order, outer, length, outer, batch, batch * time, time)


def _program(cell: AbstractCell, xs: Any, patient: bool = False) -> Program | Family | Refusal:
    """The compiled step of the cell, or the reason why there is none."""
    row = (xs.shape[2:], xs.dtype, xs.device) if isinstance(xs, Tensor) else None
    about = cell_cache(cell)
    snapshot = about.snapshot
    if snapshot is None or not snapshot.still(cell):
        if not plain(*parameters(modules(cell))):
            return Refusal(OPAQUE)
        # tensors substituted for one call, with their graph, are not kept alive
        snapshot = about.snapshot = None if substituted(cell) else Snapshot(cell)
    elif row in snapshot.found:
        return snapshot.found[row]  # type: ignore[no-any-return]
    if len(effects := about.effects[cell.training]) == EFFECTS:
        return Effect(effects[-1])
    key = fingerprint(cell, xs)
    with _lock:
        found = about.program(key)
        if found is None:
            if not patient and (what := about.hurried(key)) is not None:
                return Hurry(
                    f"it would be traced and compiled again and again, since {what} keeps changing; what changes from "
                    "call to call should be an input, a buffer or part of the state (of any size: see initial_state)"
                )
            begin = clock()
            found = _compile(cell, xs, shared_key(cell, key))
            about.keep(key, found, clock() - begin)
            if isinstance(found, Effect):
                effects.append(found)
    if row is not None and snapshot is not None:
        snapshot.found[row] = found
    return found


def _compile(cell: AbstractCell, xs: Any, key: Hashable | None) -> Program | Family | Refusal:
    """The compiled step, or the reason why there is none; `key` is that of `shared_key`."""
    parts = [leaf for _, leaf in leaves(xs)]
    given = parameters(modules(cell))
    like = parts[0]
    if any(t.device.type != "cpu" for t in (*parts, *given)):
        return Refusal("the compiled loop runs on CPUs alone")
    dtypes = {t.dtype for t in (*parts, *given) if t.is_floating_point()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        return Refusal(f"the compiled loop is for float32 or float64, but got {', '.join(sorted(map(str, dtypes)))}")
    if toolchain.compiler() is None:
        reason = toolchain.missing()
        toolchain.notice("compiler", f"{reason}. Cells run on PyTorch's kernels where it has them, else step by step")
        return Refusal(reason)
    if (shared := shared_program(key)) is not None:
        return shared
    training = torch.is_grad_enabled()
    try:
        # independent of the modes of the first call, since the result is cached for all
        with torch.device("cpu"), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            state = cell.initial_state(1, like)
            begin = [leaf for _, leaf in leaves(state)]
            axes = {k: tuple(d for d, n in enumerate(leaf.shape) if d and n == 0) for k, leaf in enumerate(begin)}
            axes = {k: found for k, found in axes.items() if found}

            def made(free: int) -> Program:
                step = trace(cell, map_state(torch.Tensor.detach, xs), training=True, free=free)
                lowered = lower(step, (len(given), len(parts), len(begin)))
                return Program(lowered, like.dtype, type(cell).__name__, training, free)

            if not axes:
                share(key, program := made(0))
                return program
            at = sizes([t.shape for t in (*given, *begin)] + [leaf.shape[2:] for leaf in parts])
            return Family([made(size) for size in at], axes, training)
    except Untraceable as reason:
        return Effect(reason) if isinstance(reason, Impure) else StepRefusal(reason)
    except toolchain.BuildError as error:
        toolchain.notice("build", str(error))
        return Refusal(error)

"""The compiled time loop of a reservoir: sparse product, leak and tanh in one pass over the matrix per step."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from everstep.native.c_tables import Address, Count, Entry, Flags, Integers, Numbers, NumbersOut, Wait, int64_array
from everstep.native.kernels import kernels, loops
from everstep.native.memory_pool import empty
from everstep.native.plain_memory import plain, watched

_SLICE = 8  # units interleaved in memory
_BLOCK = 1 << 16  # numbers computed ahead of the loop
_WAIT = 1500  # nanoseconds per step above which sharing a step among threads pays off
_LOOPS = ("es_reservoir_f32", "es_reservoir_f64")


_Real: TypeAlias = Annotated[Entry, "double"]


class ReservoirLoop(NamedTuple):
    """What the compiled loop reads.

    Attributes:
        batch, time, units, connections: sizes.
        weights, columns: of `_Packed`.
        short_weights, short_columns: 1 where they take two bytes each.
        scale: s, as the bits of a float64.
        leak: a (units,).
        ys, stride: (batch, time, units), u_t comes in and h_t goes out; how far a row is from the next.
        state: h (batch, units).
        lengths, resets: (batch,) and (batch, time), or null.
        memory: 2 · 8 · units, rounded up to whole slices, of each thread that owns rows.
        outputs: features of y; 0: the loop is open, and what follows is null.
        back, readout, offset, fed: F, R, c and y_{t-1} of `Closed`.
        made: y_t (batch, time, outputs).
        shared: 1 where threads share the units of all rows.
        barrier, gate: what they wait by.
    """

    batch: Count
    time: Count
    units: Count
    connections: Count
    weights: Address
    columns: Address
    short_weights: Count
    short_columns: Count
    scale: _Real
    leak: Numbers
    ys: NumbersOut
    stride: Count
    state: NumbersOut
    lengths: Integers
    resets: Flags
    memory: NumbersOut
    shared: Count
    barrier: Wait
    gate: Address
    outputs: Count = 0
    back: Numbers = 0
    readout: Numbers = 0
    offset: Numbers = 0
    fed: NumbersOut = 0
    made: NumbersOut = 0


@dataclass(frozen=True)
class _Packed:
    """The matrix in the layout of the loop, and the buffers it was packed from, with their versions."""

    made_of: tuple[tuple[Tensor, int], ...]
    weights: Tensor  # (slices, connections, 8), as bfloat16 or in the dtype of the cell
    columns: Tensor  # (slices, connections, 8), as uint16 or int32


_packed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


def available(*tensors: Tensor) -> bool:
    """Whether these are plain CPU tensors that need no gradient, and there is a compiler."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.float64)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and all(t.dtype == dtype and t.is_cpu for t in tensors)
        and plain(*tensors)
        and watched() is None
        and _library() is not None
    )


class Closed(NamedTuple):
    """The output feedback: F y_{t-1} is added to `drive`, with y_t = R h_t + c."""

    back: Tensor  # F (units, outputs)
    readout: Tensor  # R (outputs, units)
    offset: Tensor  # c (outputs,)
    fed: Tensor  # y before the first step (batch, outputs)


def run(cell: Any, xs: Tensor, state: Tensor, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """h_t for every step, and the last one, from inputs xs (batch, time, input_size).

    Runs a few steps at a time, so that W_in x + b is still in the cache when the loop writes h over it.
    """
    ys, state = empty(xs, *xs.shape[:2], cell.units), _copy(state)
    steps = max(16, _BLOCK // max(1, len(xs) * cell.units))
    for start in range(0, xs.shape[1], steps):
        part = ys[:, start : start + steps]
        for x, y in zip(xs[:, start : start + steps], part, strict=True):
            torch.addmm(cell.bias, x, cell.weight_ih.t(), out=y)
        left = None if lengths is None else lengths - start
        _call(cell, part, state, left, None if resets is None else resets[:, start : start + steps], ())
    return ys, state


def run_driven(
    cell: Any, drive: Tensor, state: Tensor, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same from all external input: `drive` (batch, time, units), which is overwritten."""
    drive, state = drive.contiguous(), _copy(state)
    _call(cell, drive, state, lengths, resets, ())
    return drive, state


def run_closed(
    cell: Any, drive: Tensor, state: Tensor, closed: Closed, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y_t for every step, the last state and the last y; `drive` is overwritten."""
    drive, state, fed = drive.contiguous(), _copy(state), _copy(closed.fed)
    made = drive.new_empty(*drive.shape[:2], fed.shape[1])
    constants = [t.detach().contiguous() for t in closed[:3]]
    _call(cell, drive, state, lengths, resets, (*constants, fed, made))
    return made, state, fed


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _call(
    cell: Any,
    drive: Tensor,
    state: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    closed: tuple[Tensor, ...],
) -> None:
    library = _library()
    assert library is not None
    matrix = _pack(cell)
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    resets = None if resets is None else resets.contiguous()
    leak = cell.leak.contiguous()
    team = kernels(drive.dtype)
    threads, shared = _share(len(drive), drive.shape[1], cell.weights.numel())
    memory = drive.new_empty((1 if shared else threads) * 2 * _SLICE * (cell.units + _SLICE))
    gate = ctypes.create_string_buffer(team.barrier_bytes + 64)
    table = ReservoirLoop(
        batch=drive.shape[0],
        time=drive.shape[1],
        units=drive.shape[2],
        connections=cell.weights.shape[1],
        weights=matrix.weights.data_ptr(),
        columns=matrix.columns.data_ptr(),
        short_weights=matrix.weights.dtype == torch.bfloat16,
        short_columns=matrix.columns.dtype == torch.uint16,
        scale=struct.unpack("q", struct.pack("d", float(cell.scale)))[0],
        leak=leak.data_ptr(),
        ys=drive.data_ptr(),
        stride=drive.stride(0),
        state=state.data_ptr(),
        lengths=0 if lengths is None else lengths.data_ptr(),
        resets=0 if resets is None else resets.data_ptr(),
        memory=memory.data_ptr(),
        shared=shared,
        barrier=team.barrier,
        gate=(ctypes.addressof(gate) + 63) // 64 * 64,
    )
    if closed:
        names = ("back", "readout", "offset", "fed", "made")
        places = (tensor.data_ptr() for tensor in closed)
        table = table._replace(outputs=closed[-1].shape[2], **dict(zip(names, places, strict=True)))
    loop = library.es_reservoir_f32 if drive.dtype == torch.float32 else library.es_reservoir_f64
    team.parallel(loop, int64_array(table), threads)


def _share(rows: int, steps: int, connections: int) -> tuple[int, bool]:
    """How many threads, and whether they share the units of all rows (True) or own rows, eight at a time."""
    threads, blocks = max(1, torch.get_num_threads()), -(-rows // _SLICE)
    nanoseconds = 0.3 * connections * min(rows, 3)  # per step of a block; eight rows take three times one
    if threads > blocks and nanoseconds > _WAIT and steps * nanoseconds > 10 * _WAIT:
        return threads, True
    return max(1, min(threads, blocks)), False


def _pack(cell: Any) -> _Packed:
    made_of = tuple((t, 0 if t.is_inference() else t._version) for t in (cell.weights, cell.columns))
    known = _packed.get(cell)
    if known is not None and all(
        now is then and version == before for (now, version), (then, before) in zip(made_of, known.made_of, strict=True)
    ):
        return known
    weights, columns = _sliced(cell.weights), _sliced(cell.columns)
    short = weights.to(torch.bfloat16)
    fresh = _Packed(
        made_of,
        short if torch.equal(short.to(weights.dtype), weights) else weights,
        columns.to(torch.uint16) if cell.units <= 1 << 16 else columns,
    )
    _packed[cell] = fresh
    return fresh


def _sliced(matrix: Tensor) -> Tensor:
    """(units, connections) as (slices, connections, 8), with zeros for the missing units of the last slice."""
    missing = -len(matrix) % _SLICE
    full = torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])])
    return full.view(len(full) // _SLICE, _SLICE, matrix.shape[1]).transpose(1, 2).contiguous()


def _library() -> ctypes.CDLL | None:
    """The loop; None where there is no compiler."""
    return loops("sparse", ReservoirLoop, _LOOPS, "reservoirs run without their compiled loop, slowly")

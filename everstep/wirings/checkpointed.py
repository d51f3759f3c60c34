"""Back-propagation through time in little memory."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from everstep.cell import Cell, check_size, scan
from everstep.native import memory_pool
from everstep.state import State, detach, leaves
from everstep.wirings.cell_wrapper import CellWrapper
from everstep.wirings.embedding_dropout import EmbeddingDropout
from everstep.wirings.recompute import Piece, recomputed, steps_of_piece, undisturbed
from everstep.wirings.regularise import Masking

_PROBES = 8, 16


class Checkpointed(CellWrapper):
    """A cell whose training keeps only the state at the start of each piece of the sequence (Chen 2016; Gruslys 2016).

    The T steps are cut into pieces of `every` steps. Forward keeps s_0, s_every, s_2·every, … and the activations of
    the last piece, where backward starts; backward reruns each of the other pieces, from last to first, and
    back-propagates through it. Outputs and gradients are those of the cell itself. Memory is T/every states and `every`
    steps (by default T^⅔/50 and 50 ∛T) instead of T steps; the cost is one more forward run. Each piece runs on the
    fastest backend, like any sequence. Two nested levels need less memory:
    `Checkpointed(Checkpointed(cell, 50), 2500)` keeps T/2500 + 50 states and 50 steps.

    >>> from everstep import LSTM
    >>> ys, (h, c) = Checkpointed(LSTM(3, 5))(torch.zeros(2, 1000, 3))

    Per-step dropout masks are drawn anew for each piece and are the same when it is rerun. A mask for the whole
    sequence has to be drawn outside of the pieces: `VariationalDropout(Checkpointed(cell), p)`,
    `WeightDrop(Checkpointed(cell), p, ["cell.weight_hh"])`.

    Args:
        cell: the cell or causal wiring inside.
        every: steps of a piece; about 50 ∛T if None: pieces much shorter take longer.
        budget: bytes for what is kept, instead of `every`: the longest pieces that fit. What autograd keeps for a step
            is measured on a few steps; temporary arrays of backward are extra, about as much as one more piece.

    Known limits: xs and ys, if the caller keeps them, grow with T; `everstep.learn.checkpointed` includes the
    embedding and the loss in the pieces. Zoneout and TimeSkip step the cell inside: place them inside, not around. A
    derivative of the gradients (`create_graph`) is correct, but needs the memory that this wiring saves. Random
    generators other than torch's, and attributes that a step changes, are not restored. Sources: Chen et al. 2016,
    "Training deep nets with sublinear memory cost"; Gruslys et al. 2016, "Memory-efficient backpropagation through
    time".

    Raises:
        TypeError: an acausal layer, which cannot be cut in time.
        ValueError: `every` or `budget` below 1, or both given; when run, a budget that is too small, or in training a
            wiring inside that draws one mask for a whole sequence.
    """

    def __init__(self, cell: Cell, every: int | None = None, *, budget: int | None = None):
        if not isinstance(cell, Cell):
            raise TypeError(
                f"Checkpointed: {type(cell).__name__} is no Cell: it sees the future and cannot be cut in time; "
                f"checkpoint the cells inside of it"
            )
        if every is not None and budget is not None:
            raise ValueError(f"Checkpointed: give every={every} or budget={budget}, not both")
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell
        self.every = None if every is None else check_size(self, "every", every)
        self.budget = None if budget is None else check_size(self, "budget", budget)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Piece after piece; the whole sequence in one run if no gradient is needed."""
        refuse_shared_masks(self.cell, "Checkpointed")

        def run(cell: Any, inputs: Any, state: State) -> tuple[Tensor, State]:
            xs, lengths, resets = inputs
            return scan(cell, xs, state, lengths=lengths, resets=resets, backend=backend)

        if not torch.is_grad_enabled():
            return run(self.cell, (xs, lengths, resets), state)
        time = xs.shape[1]
        every = self.every or steps_of_piece(time)
        if self.budget is not None:
            every = self._within(self.budget, run, xs, state)
        # split, because the gradient of each slice of xs would be as large as xs
        inputs = []
        for start, piece in zip(range(0, time, every), xs.split(every, 1), strict=True):
            rest = None if lengths is None else (lengths - start).clamp(0, piece.shape[1])
            again = None if resets is None else resets[:, start : start + every]
            inputs.append((piece, rest, again))
        ys, state = recomputed(run, self.cell, inputs, state)
        return torch.cat(ys, 1), state

    def _within(self, budget: int, run: Piece, xs: Tensor, state: State) -> int:
        """The longest pieces e with e · step + ⌈T/e⌉ · state ≤ budget, all in bytes."""
        time = xs.shape[1]
        kept = sum(leaf.nbytes for _, leaf in leaves(state))
        step = bytes_of_step(run, self.cell, xs, state)
        if time * step <= budget:
            return time
        least = math.ceil(2 * math.sqrt(step * kept * time) + step)
        inside = (budget - step) ** 2 - 4 * step * kept * time
        if budget < step or inside < 0:
            raise ValueError(
                f"Checkpointed: {time} steps of {len(xs)} rows need a budget of {least:,} bytes (a step keeps "
                f"{step:,}, a state {kept:,}), but it is {budget:,}; raise it, or put one Checkpointed around another"
            )
        return max(1, int((budget - step + math.sqrt(inside)) / (2 * step)))

    def extra_repr(self) -> str:
        return f"every={self.every}" if self.budget is None else f"budget={self.budget}"


def bytes_of_step(piece: Piece, model: nn.Module, xs: Tensor, state: State) -> int:
    """Bytes that autograd keeps for one more step of `piece`, including its output; has no side effects."""
    devices = [] if xs.device.type == "cpu" else [xs.get_device()]
    found: list[int] = []
    for steps in _PROBES:
        few = xs.detach()[:, :1].expand(-1, steps, -1).clone().requires_grad_(xs.requires_grad)
        saved: list[weakref.ref[Tensor]] = []

        def keep(tensor: Tensor, saved: list[weakref.ref[Tensor]] = saved) -> Tensor:
            held = tensor.detach()  # keeping the tensor itself would make a reference cycle with its graph
            saved.append(weakref.ref(held))  # weak, because what an inner Checkpointed saves is freed
            return held

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with (
            torch.random.fork_rng(devices, device_type="cuda" if not devices else xs.device.type),
            hooks,
            memory_pool.apart(),
        ):
            ys, _ = undisturbed(piece, model, (few, None, None), detach(state))
        kept = [ys, *(tensor for ref in saved if (tensor := ref()) is not None)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        found.append(sum(storages.values()))
    return max(1, (found[1] - found[0]) // (_PROBES[1] - _PROBES[0]))


def refuse_shared_masks(model: nn.Module, who: str) -> None:
    """Raise if `model`, in training, draws one mask per sequence: cut into pieces, it would draw one per piece."""
    for module in model.modules():
        if not isinstance(module, Masking | EmbeddingDropout) or not module.training:
            continue
        if module.p > 0 and (isinstance(module, EmbeddingDropout) or module.once):
            raise ValueError(
                f"{who}: {type(module).__name__} inside draws one mask for a whole sequence, which pieces would not "
                f"share; put such a wiring around, as in WeightDrop(Checkpointed(cell), …), or .eval() it"
            )

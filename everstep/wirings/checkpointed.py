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

    The T steps are cut into pieces of `every` steps. Forward keeps s_0, s_every, s_2·every, … and all that the last
    piece needs, where backward starts; backward runs each of the others again, from late to early, and goes back
    through it. Outputs and gradients are those of the cell itself; the memory that grows with T is T/every states and
    `every` steps, by default T^⅔/50 and 50 ∛T, against T steps; the time is that of one more forward run. Pieces run as
    any sequence does, on the fastest backend. Two levels, one around the other, need less:
    `Checkpointed(Checkpointed(cell, 50), 2500)` keeps T/2500 + 50 states and 50 steps.

    >>> from everstep import LSTM
    >>> ys, (h, c) = Checkpointed(LSTM(3, 5))(torch.zeros(2, 1000, 3))

    Dropout masks of each step are drawn anew for each piece, and are the same when it is run again. A mask that holds
    for a whole sequence has to be drawn outside of the pieces: `VariationalDropout(Checkpointed(cell), p)`,
    `WeightDrop(Checkpointed(cell), p, ["cell.weight_hh"])`.

    Args:
        cell: the cell or causal wiring inside.
        every: steps of a piece; about 50 ∛T if None: pieces much shorter take longer.
        budget: bytes for what is kept, instead of `every`: pieces as long as fit. What autograd keeps for a step is
            measured on a few of them; temporary arrays of backward come on top, about as much as a piece again.

    Known limits: xs and ys, if the caller keeps them, grow with T; `everstep.learn.checkpointed` takes the
    embedding and the loss into the pieces. Zoneout and TimeSkip step the cell inside: they belong within, not around. A
    derivative of the gradients (`create_graph`) is right, but needs the memory that this wiring saves. Random
    numbers that are not torch's, and attributes that a step changes, are not put back. Sources: Chen et al. 2016,
    "Training deep nets with sublinear memory cost"; Gruslys et al. 2016, "Memory-efficient backpropagation through
    time".

    Raises:
        TypeError: an acausal layer, which cannot be cut in time.
        ValueError: `every` or `budget` below 1, or both; when run, a budget that is too small, or in training a wiring
            inside that draws one mask for a whole sequence.
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
        """Piece after piece; all at once where no gradient is wanted."""
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
    """Bytes that autograd keeps for one more step of `piece`, its output included; nothing is changed by asking."""
    devices = [] if xs.device.type == "cpu" else [xs.get_device()]
    found: list[int] = []
    for steps in _PROBES:
        few = xs.detach()[:, :1].expand(-1, steps, -1).clone().requires_grad_(xs.requires_grad)
        saved: list[weakref.ref[Tensor]] = []

        def keep(tensor: Tensor, saved: list[weakref.ref[Tensor]] = saved) -> Tensor:
            held = tensor.detach()  # the tensor itself would hold the graph that holds it
            saved.append(weakref.ref(held))  # weak, because what is saved within a Checkpointed inside is let go
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
    """Raise where `model`, in training, draws a mask once a sequence: cut into pieces, it would draw one for each."""
    for module in model.modules():
        if not isinstance(module, Masking | EmbeddingDropout) or not module.training:
            continue
        if module.p > 0 and (isinstance(module, EmbeddingDropout) or module.once):
            raise ValueError(
                f"{who}: {type(module).__name__} inside draws one mask for a whole sequence, which pieces would not "
                f"share; put such a wiring around, as in WeightDrop(Checkpointed(cell), …), or .eval() it"
            )

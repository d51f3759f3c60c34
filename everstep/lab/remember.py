"""Remembering the first symbol: a small task, and two well-known pictures of networks trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell
from everstep.cells import LSTM, RNN, init_bias
from everstep.look.flow import draw_flow, gradient_flow
from everstep.look.sensitivity import sensitivity
from everstep.look.unfolded import Unfolded, draw_unfolded
from everstep.state import State
from everstep.wirings import Stack

SYMBOLS = 4
UNITS, TIME, STEPS, BATCH = 8, 12, 800, 64
SHOWN, ASKED, LAGS = 10, (5, 9), 80  # steps in the picture, steps with a cue, and largest lag of gradients


@dataclass(frozen=True)
class Recalled:
    """Sequences of four symbols, in which every cue asks for the first symbol.

    Attributes:
        xs: (batch, time, 4 + 2): the symbol, one-hot; whether it is the first; whether this step is a cue.
        targets: (batch, time, 4): the first symbol, one-hot, at cues; zeros elsewhere.
    """

    xs: Tensor
    targets: Tensor


def sequences(batch: int, time: int, seed: int | torch.Generator, cues: tuple[int, ...] | None = None) -> Recalled:
    """Random sequences with cues at the steps `cues` (from 1), or at a random quarter of the steps from 3 on."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    symbols = torch.randint(SYMBOLS, (batch, time), generator=generator)
    asked = torch.rand(batch, time, generator=generator) < 0.25
    step = torch.arange(1, time + 1).expand(batch, time)
    asked = asked & (step > 2) if cues is None else torch.isin(step, torch.tensor(cues))
    shown = F.one_hot(symbols, SYMBOLS).float() * ~asked[..., None]
    flags = torch.stack([step == 1, asked], -1).float()
    return Recalled(torch.cat([shown, flags], -1), asked[..., None] * shown[:, :1])


class Recaller(nn.Module):
    """A cell with a linear read-out, trained on the task by Adam on the squared error; deterministic for a seed.

    >>> model = Recaller(RNN, units=4).learn(time=6, steps=2)
    >>> 0 <= model.right(time=6) <= 1
    True

    Args:
        kind: the class of the cell, called with (input_size, hidden_size).
        units: the hidden size.
    """

    def __init__(self, kind: Any, units: int = UNITS, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.cell: Cell = kind(SYMBOLS + 2, units)
        if isinstance(self.cell, LSTM):
            init_bias(self.cell, "f", 3.0)
        self.read = nn.Linear(units, SYMBOLS)

    def learn(self, time: int = TIME, steps: int = STEPS) -> Recaller:
        """Train on sequences of `time` steps; returns self."""
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(self.parameters(), 0.02)
        for _ in range(steps):
            batch = sequences(BATCH, time, generator)
            loss = (self.read(self.cell(batch.xs)[0]) - batch.targets).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
        return self

    @torch.no_grad()
    def right(self, time: int = TIME) -> float:
        """The accuracy at cues in new sequences; chance level is 1/4."""
        batch = sequences(512, time, seed=1_000_000)
        asked = batch.targets.any(-1)
        said = self.read(self.cell(batch.xs)[0]).argmax(-1)
        return float((said == batch.targets.argmax(-1))[asked].float().mean())

    def unfolded(self, title: str) -> Unfolded:
        """Its unfolded graph, each node with its sensitivity to the first input."""
        xs = sequences(32, SHOWN, seed=1, cues=ASKED).xs
        outputs = sensitivity(Stack(self.cell, _ReadOut(self.read)), xs).norms
        states = dict(zip((found := sensitivity(self.cell, xs, leaves=True)).names, found.norms, strict=True))
        lstm = isinstance(self.cell, LSTM)
        hidden = states["LSTM, c"] if lstm else outputs[0]
        inputs = np.eye(SHOWN)[0]
        middle = "memory\ncell c" if lstm else "state h"
        rows = {"input x": inputs, middle: hidden / hidden[0], "output y": outputs[1] / hidden[0]}
        asked = np.isin(np.arange(1, SHOWN + 1), ASKED)
        return Unfolded(title, rows, asked, _gates(self.cell, xs) if lstm else {})


class _ReadOut(Cell):
    """y_t = W x_t + b, without a state."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features)
        self.linear = linear

    def initial_state(self, batch: int, like: Tensor) -> State:
        return ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.linear(x), state


@torch.no_grad()
def _gates(cell: Any, xs: Tensor) -> dict[str, Any]:
    """The gates of one unit, (time,) each, averaged over the rows.

    The unit passes the most of step 1 to the first answer, but not before: it maximises i_1 · Π f_t · (o_cue −
    o_before).
    """
    hs = cell(xs)[0]
    before = torch.cat([torch.zeros_like(hs[:, :1]), hs[:, :-1]], 1)
    rows = F.linear(xs, cell.weight_ih, cell.bias_ih) + F.linear(before, cell.weight_hh, cell.bias_hh)
    i, f, _, o = rows.sigmoid().mean(0).chunk(4, -1)
    cue = ASKED[0] - 1
    unit = int((i[0] * f[1 : cue + 1].prod(0) * (o[cue] - o[cue - 1])).argmax())
    return {name: gate[:, unit].numpy() for name, gate in (("input", i), ("forget", f), ("output", o))}


def unfolded_words(network: Unfolded) -> str:
    """A caption: the remaining sensitivity to the first input, and when the gates of one unit are open."""
    state = list(network.rows.values())[1]
    share = float(state[-1] / state[0])
    what = "fades" if share < 0.5 else "stays"
    words = f"state {what} ({share:.2g} is left after {len(state) - 1} steps)"
    for name, values in network.gates.items():
        first = 1 if name == "forget" else 0  # there is no state before the first step
        steps = [str(step) for step, value in enumerate(values[first:], first + 1) if value > 0.5]
        at = (
            "at every step"
            if len(steps) == len(values) - first
            else f"at step {', '.join(steps)}"
            if steps
            else "never"
        )
        words += f", its {name} gate is open {at}"
    return words


def pictures(out: Path) -> list[tuple[Path, str]]:
    """Train a tanh network and an LSTM for some seconds; draw the unfolded graph and the gradient flow of both.

    Returns:
        The path and the caption of each picture.
    """
    models = {"tanh network": Recaller(RNN).learn(), "LSTM": Recaller(LSTM).learn()}
    titles = [f"{name}: right at {model.right():.0%} of the steps where it is asked" for name, model in models.items()]
    graph, flow = out / "unfolded.png", out / "gradient-flow.png"
    unfolded = [model.unfolded(title) for model, title in zip(models.values(), titles, strict=True)]
    draw_unfolded(unfolded, graph)
    kept = [f"the {name}'s {unfolded_words(one)}" for name, one in zip(models, unfolded, strict=True)]
    xs = sequences(16, LAGS + 20, seed=2).xs
    flows = {name: gradient_flow(one.cell, xs, lags=LAGS, dtype=torch.float64) for name, one in models.items()}
    sentence = draw_flow(flows, flow)
    return [
        (
            graph,
            "Both were trained alike to repeat the first symbol when asked; dark nodes still depend on it. "
            f"Here {'; '.join(kept)}. Of one unit the input gate is drawn below the cell, the forget gate left of it "
            "and the output gate above (○ open, — closed).",
        ),
        (flow, sentence),
    ]

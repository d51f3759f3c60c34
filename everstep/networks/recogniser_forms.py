"""The forms of a recogniser, and the recogniser that another runtime computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.networks.forms import LENGTHS, Exported, Form, Input, Named
from everstep.networks.recogniser import Recogniser
from everstep.networks.stand_ins import Runtime
from everstep.state import State


class _Labelled(Cell):
    """A cell from a step of frames to log p of each label, in nats."""

    def __init__(self, body: Cell, model: Recogniser):
        super().__init__(model.features, model.head.labels + 1)
        self.body, self.head = body, model.head

    def initial_state(self, batch: int, like: Tensor) -> State:
        return self.body.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.body.step(x, state)
        return self.head.predict(y), state


def recogniser_forms(model: Recogniser) -> Exported:
    """The forms of a recogniser: `frames` to `log_p` of each label and of the blank, the last one, in nats.

    `frames` are scaled, (batch, D) for a step and (batch, time, D) for sequences.
    """
    body = model.body

    def initial(rows: int) -> State:
        return body.initial_state(rows, model.head.bias)

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        ys, state = body(given["frames"], state, lengths=given["lengths"])
        return {"log_p": model.head.predict(ys)}, state

    frames = {"frames": Input(("batch", "time", model.features)), "lengths": LENGTHS}
    whole = Form(model, sequence, frames, initial)
    if not isinstance(body, Cell):
        return Exported("it reads both ways, and needs the whole recording", whole)
    cell = _Labelled(body, model)

    def step(given: Named, state: State) -> tuple[Named, State]:
        log_p, state = cell.step(given["frames"], state)
        return {"log_p": log_p}, state

    return Exported(Form(model, step, {"frames": Input(("batch", model.features))}, initial, cell), whole)


class RecogniserStandIn(Recogniser):
    """A `Recogniser` that another runtime computes.

    Args:
        runtime: the runtime.
    """

    def __init__(self, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime = runtime

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """log p (B, T, K + 1) of inputs (B, T, D), in nats."""
        state = self._runtime.initial(len(inputs))
        return self._runtime.sequence({"frames": inputs, "lengths": lengths}, state)[0]["log_p"]

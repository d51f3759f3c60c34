"""The forms of a model of moves, and the model that another runtime computes."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.heads.pen_mixture import PenMixture
from everstep.networks.forms import LENGTHS, Exported, Form, Input, Named
from everstep.networks.move_model import FEATURES, MoveModel, MoveSection, begun
from everstep.networks.stand_ins import Runtime
from everstep.state import State


def move_forms(model: MoveModel) -> Exported:
    """The forms of a model of moves: `move` (batch, 5) or `moves` (batch, time, 5) to `mixture` of the next.

    Both have a state. `mixture` is (…, 6 K + 3): log π, μ_x, μ_y, σ_x, σ_y, ρ, K each, and log p of draw, lift and end.
    Moves are scaled.
    """

    def step(given: Named, state: State) -> tuple[Named, State]:
        found, state = model.step(given["move"], state)
        return {"mixture": found}, state

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        ys, state = model.body(given["moves"], state, lengths=given["lengths"])
        return {"mixture": model.head.predict(model.out(ys))}, state

    whole = {"moves": Input(("batch", "time", FEATURES)), "lengths": LENGTHS}
    return Exported(
        Form(model, step, {"move": Input(("batch", FEATURES))}, model.initial_state, model.cell),
        Form(model, sequence, whole, model.initial_state),
    )


class MoveStandIn(MoveModel):
    """A `MoveModel` that another runtime computes.

    Args:
        section: the `model` section of a recipe.
        runtime: the runtime.
    """

    def __init__(self, section: MoveSection, runtime: Runtime):
        torch.nn.Module.__init__(self)
        self._runtime = runtime
        self.head = PenMixture(section.components, section.least_deviation)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def initial_state(self, batch: int) -> State:
        """The state before a drawing begins."""
        return self._runtime.initial(batch)

    def forward(self, moves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The distributions of each of the moves."""
        rows, time, _ = moves.shape
        lengths = torch.full((rows,), time) if lengths is None else lengths
        found, _ = self._runtime.sequence({"moves": begun(moves), "lengths": lengths}, self.initial_state(rows))
        return found["mixture"]

    def step(self, moves: Tensor, state: State) -> tuple[Tensor, State]:
        """The distributions of the next moves, and the new state."""
        found, state = self._runtime.step({"move": moves}, state)
        return found["mixture"], state

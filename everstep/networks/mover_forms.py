"""The form of a mover, and the mover that another runtime computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.networks.forms import LENGTHS, Exported, Form, Input, Named
from everstep.networks.mover import Mover, MoverSection
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.state import State


def mover_forms(model: Mover) -> Exported:
    """The form of a mover: `seen` (batch, time, D) and `lengths` to `told`, the positions of single steps, and `ahead`.

    `ahead` is (batch, horizon, D). All positions are scaled.
    """

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        told, ahead = model(given["seen"], None, given["lengths"])
        return {"told": told, "ahead": ahead}, state

    inputs = {"seen": Input(("batch", "time", model.body.output_size)), "lengths": LENGTHS}
    return Exported("it reads a window and runs free, at once", Form(model, sequence, inputs))


class MoverStandIn(Mover):
    """A `Mover` that another runtime computes.

    Args:
        section: the `model` section of a recipe.
        runtime: the runtime.
    """

    def __init__(self, section: MoverSection, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime = runtime
        self.taught, self.horizon = section.taught, section.horizon
        self.nowhere = Nowhere()

    def forward(self, seen: Tensor, horizon: int | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, W, D) to those of single steps, (B, W, D), and to the first `horizon` ahead, (B, horizon, D).

        Raises:
            ValueError: a horizon beyond that of the export.
        """
        if horizon is not None and horizon > self.horizon:
            raise ValueError(f"MoverStandIn: the export predicts {self.horizon} steps; got horizon {horizon}")
        lengths = torch.full((len(seen),), seen.shape[1]) if lengths is None else lengths
        found, _ = self._runtime.sequence({"seen": seen, "lengths": lengths}, ())
        return found["told"], found["ahead"][:, :horizon]

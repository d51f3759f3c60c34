"""The forms of classifiers of numbers, and the classifier that another runtime computes."""

from __future__ import annotations

from torch import Tensor, nn

from everstep.networks.answers import Answers
from everstep.networks.forms import LENGTHS, Exported, Form, Input, Named
from everstep.networks.number_classifier import NumberClassifier
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.state import State


def number_forms(model: NumberClassifier) -> Exported:
    """The form of a classifier of numbers: `values` and `lengths` to `log_p` of each answer, in nats.

    `values` are (batch, time, *shape of a step), scaled; NaN where a number is missing.
    """

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        return {"log_p": model(given["values"], given["lengths"])}, state

    inputs = {"values": Input(("batch", "time", *model.shape), gaps=True), "lengths": LENGTHS}
    return Exported("it answers whole sequences, and has no state between steps", Form(model, sequence, inputs))


class NumberStandIn(NumberClassifier):
    """A `NumberClassifier` that another runtime computes.

    Args:
        answers: the possible answers.
        runtime: the runtime.
    """

    def __init__(self, answers: Answers, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime, self.answers, self.temperature = runtime, answers, None
        self.nowhere = Nowhere()

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Numbers (batch, time, *shape) to log p of each answer, (batch, answers)."""
        if not inputs.shape[1]:  # a loop over no steps is none of onnxruntime's
            inputs = inputs.new_zeros(len(inputs), 1, *inputs.shape[2:])
        return self._runtime.sequence({"values": inputs, "lengths": lengths}, ())[0]["log_p"]

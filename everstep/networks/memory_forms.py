"""The form of a memory network, and the network that another runtime computes."""

from __future__ import annotations

from torch import Tensor, nn

from everstep.networks.answers import Answers
from everstep.networks.forms import Exported, Form, Input, Named
from everstep.networks.memory_network import MemoryNetwork
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.state import State


def memory_forms(model: MemoryNetwork) -> Exported:
    """The form of a memory network: `sentences` (batch, time, words) and `lengths` to `log_p` of each answer and
    `read` (batch, hops, time − 1).

    The last sentence of each length is the question; words are ids from 1, and 0 where there is none.
    """

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        log_p, weights = model.answered(given["sentences"], given["lengths"])
        return {"log_p": log_p, "read": weights}, state

    inputs = {
        "sentences": Input(("batch", "time", "words"), model.vocab_size + 1),
        "lengths": Input(("batch",), upto="time", least=1),
    }
    return Exported("it reads a story as a whole, and has no state between steps", Form(model, sequence, inputs))


class MemoryStandIn(MemoryNetwork):
    """A `MemoryNetwork` that another runtime computes.

    Args:
        answers: the possible answers.
        places: most sentences that are read.
        runtime: the runtime.
    """

    def __init__(self, answers: Answers, places: int, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime, self.answers, self.places, self.temperature = runtime, answers, places, None
        self.nowhere = Nowhere()

    def answered(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each answer (batch, answers), and what each hop reads (batch, hops, time − 1)."""
        found, _ = self._runtime.sequence({"sentences": inputs, "lengths": lengths}, ())
        return found["log_p"], found["read"]

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """log p of each answer (batch, answers)."""
        return self.answered(inputs, lengths)[0]

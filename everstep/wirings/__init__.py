"""Cells made of cells."""

from everstep.wirings.accelerate import accelerate
from everstep.wirings.bidirectional import Bidirectional
from everstep.wirings.checkpointed import Checkpointed
from everstep.wirings.conditioned import Conditioned
from everstep.wirings.deep import DTRNN, DeepTransition, FeedForward, SkipStack
from everstep.wirings.delay import Delay
from everstep.wirings.embedding_dropout import EmbeddingDropout
from everstep.wirings.feedback import Feedback
from everstep.wirings.interchange import from_torch, to_torch
from everstep.wirings.online import Online
from everstep.wirings.parallel import Parallel
from everstep.wirings.readout import ReadOut
from everstep.wirings.recurrent_dropout import RecurrentDropout, WeightDrop
from everstep.wirings.regularise import Dropout, VariationalDropout, Zoneout
from everstep.wirings.reservoir import Reservoir
from everstep.wirings.skip import TimeSkip, Window
from everstep.wirings.stack import EncoderStack, Identity, Residual, Stack
from everstep.wirings.state_dropout import StateDropout
from everstep.wirings.time_averaged import TimeAveraged
from everstep.wirings.time_distributed import TimeDistributed

__all__ = [
    "DTRNN",
    "Bidirectional",
    "Checkpointed",
    "Conditioned",
    "DeepTransition",
    "Delay",
    "Dropout",
    "EmbeddingDropout",
    "EncoderStack",
    "FeedForward",
    "Feedback",
    "Identity",
    "Online",
    "Parallel",
    "ReadOut",
    "RecurrentDropout",
    "Reservoir",
    "Residual",
    "SkipStack",
    "Stack",
    "StateDropout",
    "TimeAveraged",
    "TimeDistributed",
    "TimeSkip",
    "VariationalDropout",
    "WeightDrop",
    "Window",
    "Zoneout",
    "accelerate",
    "from_torch",
    "to_torch",
]

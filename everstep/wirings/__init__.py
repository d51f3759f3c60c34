"""Cells made of cells."""

from everstep.wirings.accelerate import accelerate
from everstep.wirings.bidirectional import Bidirectional
from everstep.wirings.interchange import from_torch, to_torch
from everstep.wirings.recurrent_dropout import RecurrentDropout, WeightDrop
from everstep.wirings.regularise import Dropout, VariationalDropout, Zoneout
from everstep.wirings.skip import TimeSkip, Window
from everstep.wirings.stack import EncoderStack, Identity, Residual, Stack

__all__ = [
    "Bidirectional",
    "Dropout",
    "EncoderStack",
    "Identity",
    "RecurrentDropout",
    "Residual",
    "Stack",
    "TimeSkip",
    "VariationalDropout",
    "WeightDrop",
    "Window",
    "Zoneout",
    "accelerate",
    "from_torch",
    "to_torch",
]

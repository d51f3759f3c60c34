"""Cells made of cells."""

from everstep.wirings.bidirectional import Bidirectional
from everstep.wirings.interchange import from_torch, to_torch
from everstep.wirings.regularise import Dropout, VariationalDropout, Zoneout
from everstep.wirings.stack import EncoderStack, Identity, Residual, Stack

__all__ = [
    "Bidirectional",
    "Dropout",
    "EncoderStack",
    "Identity",
    "Residual",
    "Stack",
    "VariationalDropout",
    "Zoneout",
    "from_torch",
    "to_torch",
]

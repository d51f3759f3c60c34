"""Cells with a memory of places beside their state, which they learn to write and to read."""

from everstep.memory.dnc import DNC as DNC
from everstep.memory.dnc import DNCState as DNCState
from everstep.memory.ntm import NTM as NTM
from everstep.memory.ntm import NTMState as NTMState

"""Reservoirs: recurrent layers that are drawn, not learned."""

from everstep.wirings.reservoir.cell import Reservoir as Reservoir
from everstep.wirings.reservoir.matrix import spectral_radius as spectral_radius

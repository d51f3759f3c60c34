"""Reservoirs: random recurrent layers that are not learned."""

from everstep.wirings.reservoir.matrix import spectral_radius as spectral_radius
from everstep.wirings.reservoir.reservoir import Reservoir as Reservoir

"""Decoding: sampling and search, which see a model only as a step function."""

from everstep.decode.beam import beam_search
from everstep.decode.constraints import Constraint, Phrases
from everstep.decode.decoder import Decoder
from everstep.decode.ensemble import ensemble
from everstep.decode.exact import Certificate, exact_search
from everstep.decode.hypotheses import Hypothesis
from everstep.decode.sampling import Sampler, StepFn, draws, sample
from everstep.decode.section import BeamSection

__all__ = [
    "BeamSection",
    "Certificate",
    "Constraint",
    "Decoder",
    "Hypothesis",
    "Phrases",
    "Sampler",
    "StepFn",
    "beam_search",
    "draws",
    "ensemble",
    "exact_search",
    "sample",
]

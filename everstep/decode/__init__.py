"""Text from a model: all that decoding sees is a step function."""

from everstep.decode.sampling import Sampler, StepFn, draws, sample

__all__ = ["Sampler", "StepFn", "draws", "sample"]

"""Text from a model: all that decoding sees is a step function."""

from everstep.decode.sampling import StepFn, draws, sample

__all__ = ["StepFn", "draws", "sample"]

"""What predictions are worth."""

from everstep.measures.calibration import Reliability, reliability
from everstep.measures.classes import ClassMeasures, class_measures

__all__ = ["ClassMeasures", "Reliability", "class_measures", "reliability"]

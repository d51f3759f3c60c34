"""What predictions are worth."""

from everstep.measures.calibration import Reliability, reliability
from everstep.measures.classes import ClassMeasures, class_measures
from everstep.measures.spans import SpanMeasures, conlleval, span_measures

__all__ = [
    "ClassMeasures",
    "Reliability",
    "SpanMeasures",
    "class_measures",
    "conlleval",
    "reliability",
    "span_measures",
]

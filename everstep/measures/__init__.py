"""Measures of predictions: accuracy, F1, calibration, spans."""

from everstep.measures.aligned import Part, aligned_accuracy, aligned_words
from everstep.measures.calibration import Reliability, reliability
from everstep.measures.classes import ClassMeasures, class_measures
from everstep.measures.multi_label import LabelMeasures, label_measures
from everstep.measures.ordered import OrderedMeasures
from everstep.measures.spans import SpanMeasures, conlleval, span_measures

__all__ = [
    "ClassMeasures",
    "LabelMeasures",
    "OrderedMeasures",
    "Part",
    "Reliability",
    "SpanMeasures",
    "aligned_accuracy",
    "aligned_words",
    "class_measures",
    "conlleval",
    "label_measures",
    "reliability",
    "span_measures",
]

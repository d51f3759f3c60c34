"""Attention: what a query reads of a memory."""

from everstep.wirings.attention.attending import Attention as Attention
from everstep.wirings.attention.attending import AttentionMemory as AttentionMemory
from everstep.wirings.attention.carried import CoverageAttention as CoverageAttention
from everstep.wirings.attention.carried import LocationAwareAttention as LocationAwareAttention
from everstep.wirings.attention.local import LocalMonotonicAttention as LocalMonotonicAttention
from everstep.wirings.attention.local import LocalPredictiveAttention as LocalPredictiveAttention
from everstep.wirings.attention.multi_head import MultiHeadAttention as MultiHeadAttention
from everstep.wirings.attention.scored import AdditiveAttention as AdditiveAttention
from everstep.wirings.attention.scored import ConcatAttention as ConcatAttention
from everstep.wirings.attention.scored import DotAttention as DotAttention
from everstep.wirings.attention.scored import GeneralAttention as GeneralAttention

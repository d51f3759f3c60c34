"""What an output means: its distribution."""

from everstep.heads.adaptive_softmax import AdaptiveSoftmax as AdaptiveSoftmax
from everstep.heads.bernoulli import Bernoulli as Bernoulli
from everstep.heads.bernoulli_stop import BernoulliStop as BernoulliStop
from everstep.heads.categorical import Categorical as Categorical
from everstep.heads.class_softmax import ClassSoftmax as ClassSoftmax
from everstep.heads.crf import CRF as CRF
from everstep.heads.ctc import CTC as CTC
from everstep.heads.cumulative import Cumulative as Cumulative
from everstep.heads.head import Head as Head
from everstep.heads.mixture_of_softmaxes import MixtureOfSoftmaxes as MixtureOfSoftmaxes
from everstep.heads.nade import NADE as NADE
from everstep.heads.sampled import NCE as NCE
from everstep.heads.sampled import BlackOut as BlackOut
from everstep.heads.sampled import SampledSoftmax as SampledSoftmax

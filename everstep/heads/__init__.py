"""What an output means: its distribution."""

from everstep.heads.bernoulli import Bernoulli as Bernoulli
from everstep.heads.categorical import Categorical as Categorical
from everstep.heads.categorical import Head as Head
from everstep.heads.crf import CRF as CRF
from everstep.heads.cumulative import Cumulative as Cumulative

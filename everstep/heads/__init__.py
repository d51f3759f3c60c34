"""What an output means: its distribution."""

from everstep.heads.categorical import Categorical as Categorical
from everstep.heads.categorical import Head as Head
from everstep.heads.crf import CRF as CRF

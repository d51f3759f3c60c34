"""What an output means: its distribution."""

from everstep.heads.categorical import Categorical, Head
from everstep.heads.crf import CRF

__all__ = ["CRF", "Categorical", "Head"]

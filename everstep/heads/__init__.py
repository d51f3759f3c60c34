"""What an output means: its distribution."""

from everstep.heads.categorical import Categorical, Head

__all__ = ["Categorical", "Head"]

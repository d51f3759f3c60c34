"""Settings as typed sections, with error messages for users."""

from everstep.sections.section import Count as Count
from everstep.sections.section import Files as Files
from everstep.sections.section import LabelGroups as LabelGroups
from everstep.sections.section import Names as Names
from everstep.sections.section import NonNegative as NonNegative
from everstep.sections.section import Positive as Positive
from everstep.sections.section import Probability as Probability
from everstep.sections.section import Section as Section
from everstep.sections.section import Seed as Seed
from everstep.sections.section import Size as Size
from everstep.sections.section import Whole as Whole

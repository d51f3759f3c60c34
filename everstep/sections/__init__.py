"""Settings as typed sections, with error messages for users."""

from everstep.sections.typed_section import Count as Count
from everstep.sections.typed_section import Files as Files
from everstep.sections.typed_section import LabelGroups as LabelGroups
from everstep.sections.typed_section import Names as Names
from everstep.sections.typed_section import NonNegative as NonNegative
from everstep.sections.typed_section import Positive as Positive
from everstep.sections.typed_section import Probability as Probability
from everstep.sections.typed_section import Section as Section
from everstep.sections.typed_section import Seed as Seed
from everstep.sections.typed_section import Size as Size
from everstep.sections.typed_section import Whole as Whole

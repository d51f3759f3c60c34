"""How a recipe says that sequences are drawn."""

from __future__ import annotations

from pydantic import Field

from everstep.sections import Count, NonNegative, Section


class SamplingSection(Section):
    """How sequences are drawn from the model; `everstep generate` takes them as options too."""

    prompt: str = ""
    """what the sequence goes on from"""
    length: Count = 500
    """tokens to draw"""
    temperature: NonNegative = 1.0
    """below 1 safer, above 1 wilder; 0: always the likeliest"""
    top_k: Count | None = None
    """only from the K likeliest tokens"""
    top_p: float | None = Field(None, gt=0, le=1)
    """only from the likeliest that make up probability P"""
    unk: bool = False
    """whether <unk>, which stands for what the vocabulary lacks, is drawn too"""

"""Settings of sampling and search."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from everstep.sections import Count, NonNegative, Positive, Section, Whole


class SamplingSection(Section):
    """Settings of sampling, which are also options of `everstep generate`."""

    prompt: str = ""
    """text to continue"""
    length: Count = 500
    """tokens to sample"""
    temperature: NonNegative = 1.0
    """below 1 safer, above 1 more diverse; 0: greedy"""
    top_k: Count | None = None
    """sample only from the K most probable tokens"""
    top_p: float | None = Field(None, gt=0, le=1)
    """sample only from the top tokens of total probability P"""
    unk: bool = False
    """whether <unk> may be sampled"""


class BeamSection(Section):
    """How the best sequences are searched for; lengths are in tokens, without the one that ends."""

    beam_width: Count = 5
    """beginnings that are followed at a time; 1: greedy, always the likeliest token"""
    n_best: Count = 1
    """how many of the best are given; at most beam_width"""
    length_penalty: NonNegative = 0.6
    """α: log p is divided by ((5 + length) / 6)^α, so that long ones are not at a disadvantage; 0: log p itself"""
    coverage_penalty: NonNegative = 0.0
    """β: by how much parts of the source that attention left out count against a sequence"""
    max_length: Count = 100
    """no sequence gets longer"""
    length_ratio: Positive | None = None
    """no sequence gets longer than this multiple of its source's length"""
    min_length: Whole = 0
    """no sequence ends before"""
    min_ratio: NonNegative = 0.0
    """no sequence ends before this multiple of its source's length"""
    groups: Count = 1
    """the beam's parts, each of which avoids the tokens of those before it; beam_width is a multiple of it"""
    diversity: NonNegative = 0.5
    """by how much, in nats for each choice of a token by an earlier group"""
    no_repeat: Count | None = None
    """no N tokens in a row are written twice"""
    unk: bool = False
    """whether <unk>, which stands for what the vocabulary lacks, is written too"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        width = f"a beam of {self.beam_width} cannot"
        if self.n_best > self.beam_width:
            yield "n_best", f"{width} give {self.n_best}; raise beam_width to {self.n_best} or lower n_best"
        if self.beam_width % self.groups:
            yield "groups", f"{width} be divided into {self.groups} equal groups; change beam_width or groups"
        if self.min_length > self.max_length:
            yield "min_length", f"{self.min_length} is more than max_length, {self.max_length}"
        if self.length_ratio is not None and self.min_ratio > self.length_ratio:
            yield "min_ratio", f"{self.min_ratio:g} is more than length_ratio, {self.length_ratio:g}"

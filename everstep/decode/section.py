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
    """Settings of beam search; lengths are in tokens, without the end token."""

    beam_width: Count = 5
    """number of hypotheses in the beam; 1: greedy search"""
    n_best: Count = 1
    """number of results; at most beam_width"""
    length_penalty: NonNegative = 0.6
    """α: log p is divided by ((5 + length) / 6)^α, which favours longer sequences; 0: log p itself"""
    coverage_penalty: NonNegative = 0.0
    """β: weight of the penalty for parts of the source without attention"""
    max_length: Count = 100
    """maximal length of a sequence"""
    length_ratio: Positive | None = None
    """maximal length as a multiple of the source's length, but not below min_length"""
    min_length: Whole = 0
    """minimal length of a sequence"""
    min_ratio: NonNegative = 0.0
    """minimal length as a multiple of the source's length"""
    groups: Count = 1
    """number of groups of the beam, each of which avoids the tokens of earlier groups; must divide beam_width"""
    diversity: NonNegative = 0.5
    """strength of the avoidance, in nats per choice of a token by an earlier group"""
    no_repeat: Count | None = None
    """N: no N-gram occurs twice"""
    unk: bool = False
    """whether <unk> is allowed"""

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

"""The settings of a translation: its data, its network, its objective and its search."""

from __future__ import annotations

from collections.abc import Iterator

from everstep.networks.encoder_decoder import EncoderDecoderSection
from everstep.networks.softmax_by_name import smoothing_problem
from everstep.networks.translating import TranslationSearch
from everstep.runs.pair_section import PairSection
from everstep.runs.recipe import Recipe
from everstep.sections import Probability, Section


class TeacherForcing(Section):
    """The loss: −log p of each target token given the source and the true tokens before it."""

    label_smoothing: Probability = 0.1
    """share of the target probability that is spread over all tokens (Szegedy 2016)"""


class TranslationRecipe(Recipe):
    """Texts with their translations, an encoder and a decoder, likelihood, and a search."""

    data: PairSection = PairSection()
    model: EncoderDecoderSection = EncoderDecoderSection()
    objective: TeacherForcing = TeacherForcing()
    decode: TranslationSearch = TranslationSearch()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """A tied embedding with two vocabularies, and search options without word tokens or without attention."""
        yield from super().disagreements()
        yield from smoothing_problem(self.model, self.objective.label_smoothing)
        if self.model.tied == "all" and self.data.vocabulary != "joint":
            yield (
                "model.tied",
                "expected target or none, or data.vocabulary joint: two vocabularies have two embeddings",
            )
        if self.decode.replace_unknown and (self.data.unit != "words" or self.model.context != "attention"):
            yield "decode.replace_unknown", "expected false, or data.unit words and model.context attention beside it"
        if self.decode.n_best > 1:
            yield "decode.n_best", "expected 1: `everstep predict RUN --n-best N` asks for more translations of a line"
        if self.decode.coverage_penalty and self.model.context != "attention":
            yield "decode.coverage_penalty", f"expected 0 where model.context is {self.model.context}"
        known = self.data.targets or (str(self.data.target),)
        if self.decode.own_tokens and self.data.pairs is None:
            yield "decode.own_tokens", "expected false, or data.pairs beside it: one direction writes one language"
        readable = dict.fromkeys(str(direction.source) for direction in self.data.tested)
        if self.decode.source is not None and self.decode.source not in readable:
            known_sources = ", ".join(readable)
            yield "decode.source", f"expected a language that is read ({known_sources}); got {self.decode.source}"
        if self.decode.to is not None and self.decode.to not in known:
            yield "decode.to", f"expected a target language of this recipe ({', '.join(known)}); got {self.decode.to}"

"""Music: p(chord | chords before it), to score, continue and write pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everstep.data.chord_batches import ChordBatch, ChordBatches
from everstep.data.readers.chords import chords_of, chords_text, read_pieces
from everstep.data.readers.midi import midi_bytes
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.chord_decoder import ChordSpeller, ChordStandIn, chord_decoder
from everstep.networks.chord_forms import chord_forms
from everstep.networks.chord_model import ChordModel, ChordSection, chord_losses
from everstep.networks.scoring import Score
from everstep.networks.stand_ins import Runtime
from everstep.rivals.keys import key_rivals
from everstep.runs.music_data import MusicSection, Pieces
from everstep.runs.music_pictures import chord_passage, music_pictures
from everstep.runs.named_files import split_names
from everstep.runs.recipe import Recipe
from everstep.runs.task import Progress, Purpose, Say, Task
from everstep.state import State


class MusicRecipe(Recipe):
    """The recipe: pieces, and a stack of cells that reads chords."""

    data: MusicSection = MusicSection()
    model: ChordSection = ChordSection()
    decode: SamplingSection = SamplingSection(length=200)


class Music(Task[MusicRecipe]):
    """Predicts the next chord: trains on pieces of music, scores, continues and writes them."""

    Recipe = MusicRecipe
    unit = "step"
    shown = ("loss", "bits")
    meaning = {"loss": "-log p of a chord given those before it, in nats", "bits": "the same in bits"}
    reads = {"score": "pieces.txt"}
    renders = (".mid",)
    typed = False

    @cached_property
    def pieces(self) -> Pieces:
        """The files of the recipe."""
        return Pieces(self.recipe.data, self.recipe.seed)

    def ready(self, say: Say) -> None:
        """Report the pieces of every split."""
        for line in [*self.summary(), *self.pieces.told()]:
            say(line)

    def asked_lines(self, verb: str) -> str:
        """What a line to score holds."""
        return "One piece per line: keys joined by commas, steps by spaces, - for silence, such as 60,64,67 60,65 -"

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return split_names(self.recipe.data)

    def model(self) -> ChordModel:
        """A new `ChordModel`."""
        return ChordModel(self.recipe.data.keys, self.recipe.model, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> ChordBatches:
        """Pieces of a split: shuffled to learn from, in order otherwise."""
        learn = purpose == "learn"
        return self.pieces.batches(split, *((self.recipe.train.batch_size, True) if learn else ()))

    def objective(self, model: Any, batch: ChordBatch, state: State) -> Iterator[Loss]:
        """−log p of each chord given those before it."""
        return chord_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Nats and bits of a chord."""
        found = super().metrics(model, split, progress)
        return {**found, "bits": found["loss"] / math.log(2)}

    def digest(self, split: str) -> str:
        """A digest of the pieces."""
        return self.pieces.digest(split)

    def summary(self) -> list[str]:
        """The pieces, for the card."""
        data = self.recipe.data
        return [f"pieces: {data.train}", f"keys: {data.lowest} to {data.highest}"]

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Nats of a chord by the frequency of each key, alone and given itself a step before."""
        found = key_rivals(self.pieces.of("train"), self.pieces.of(split))
        return [{"name": name, "loss": nats, "bits": nats / math.log(2)} for name, nats in found]

    @torch.inference_mode()
    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of the piece in each line, Σ_t log p(x_t | x_<t)."""
        model.eval()
        found = []
        for number, line in enumerate(lines, first_line):
            roll = self.recipe.data.heard(chords_of(line, f"line {number}"), f"line {number}")
            (nats,) = model.nats(torch.from_numpy(roll)[None].float().to(model.device), torch.tensor([len(roll)]))
            logps = [-value for value in nats.tolist()]
            found.append(Score(sum(logps), len(logps), line, tuple(logps)))
        return found

    def lines(self, split: str) -> list[str]:
        """The pieces of a split as text, of the keys that the model knows."""
        lowest = self.recipe.data.lowest
        rolls = self.pieces.of(split)
        return [chords_text(tuple((np.flatnonzero(keys) + lowest).tolist()) for keys in roll) for roll in rolls]

    def file_lines(self, path: Path) -> list[str]:
        """The pieces of a MIDI, JSON or text file as text; of JSON with parts, those of "test"."""
        data = self.recipe.data
        return [chords_text(piece) for piece in read_pieces(path, "test", data.steps_per_beat, data.encoding)]

    def decoder(self, model: Any, given: str) -> Decoder:
        """A decoder that continues the piece `given`."""
        return chord_decoder(model, self.recipe.data.heard(chords_of(given, "the prompt"), "the prompt"))

    def speller(self) -> ChordSpeller:
        """Chords as text."""
        return ChordSpeller(self.recipe.data.lowest, self.recipe.data.keys)

    def rendered(self, text: str, suffix: str) -> bytes:
        """A piece as a MIDI file."""
        return midi_bytes(chords_of(text, "the piece"), self.recipe.data.steps_per_beat)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """A piece of the user's text, or of the held-out data, with the surprise of each chord."""
        return chord_passage(model, self.pieces, text, characters)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Piano rolls: a held-out piece with its surprise, and one that the model continues."""
        yield from music_pictures(model, self.pieces, text, out)

    exported = staticmethod(chord_forms)

    def stand_in(self, runtime: Runtime) -> ChordModel:
        """The same in another runtime."""
        return ChordStandIn(self.recipe.data.keys, runtime)

"""Recordings of a recipe's `data` section: features, texts, splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from everstep.cancellation import check_cancelled
from everstep.data.log_mel import log_mel
from everstep.data.readers.audio import read_recording
from everstep.data.readers.labelled_rows import Columns
from everstep.data.readers.spoken import ManifestFormat, Named, read_manifest, repeated
from everstep.data.spoken_batches import Changes, Frames, SpokenBatches
from everstep.data.text.text_files import expand
from everstep.errors import DataError, counted
from everstep.heads.ctc import steps_needed
from everstep.networks.alphabet import Alphabet, Unit
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.held_out import WholeExamples
from everstep.runs.named_files import file_problems
from everstep.runs.progress_bar import progress_bar
from everstep.sections import Count, Files, Positive, Probability, Section, Whole

SCORED = 64
"""Most recordings in a batch of validation and scoring."""
SCORED_STEPS = 16_384
"""Most padded steps in it."""
NAMED = 5


class SpokenSection(Section):
    """Recordings and their texts: manifests, features, splits."""

    train: Files = "everstep:morse.train"
    """path, list or globs of tables (.tsv, .csv) or .jsonl that name recordings; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the recordings of train"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    format: ManifestFormat = "auto"
    """of the manifests; auto: by name, else by the first line"""
    encoding: str = "utf-8"
    """of the manifests"""
    audio: str = "audio"
    """column of the paths, or of data:audio/wav;base64,…; without a header count from 0"""
    text: str = "text"
    """column of what is said"""
    folder: str = ""
    """where relative paths begin, seen from the folder of the manifest"""
    unit: Unit = "characters"
    """labels: characters, or whole words, for few different ones"""
    lowercase: bool = False
    """convert texts to lower case"""
    sample_rate: int = Field(16_000, ge=100, le=1_000_000)
    """samples a second; recordings of other rates are resampled"""
    window_ms: float = Field(25.0, gt=0, le=1000)
    """length of a frame"""
    hop_ms: Positive = 10.0
    """time from a frame to the next"""
    bands: Count = 40
    """features of a frame: ln of the energy of mel bands"""
    stack: Count = 2
    """neighbouring frames that are one step of the network; more are faster, and labels need a step each at least"""
    skip_broken: bool = False
    """leave out recordings that cannot be read, and count them; else they are an error"""
    masks: Whole = 0
    """masks of bands, and as many of frames, that training hides of each recording (SpecAugment)"""
    mask_bands: Count = 8
    """most bands of a mask"""
    mask_frames: Count = 20
    """most frames of a mask, at most a fifth of the recording"""
    warp: float = Field(0.0, ge=0, le=0.5)
    """w: training stretches time, and the axis of bands, by factors from 1 - w to 1 + w, anew in each epoch"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """No path, and unknown encodings."""
        yield from file_problems(self)

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0

    @property
    def columns(self) -> Columns:
        """What the manifests hold where."""
        return Columns((self.audio,), self.text, keys=("audio", "text"))

    @property
    def step_seconds(self) -> float:
        """The time from a step of the network to the next."""
        return self.stack * round(self.sample_rate * self.hop_ms / 1000) / self.sample_rate

    def written(self, text: str) -> str:
        """A text as it is learned."""
        return text.lower() if self.lowercase else text


class Spoken(NamedTuple):
    """A recording.

    Attributes:
        audio: its path, or itself.
        text: what is said; "" if unknown.
        frames: (T, bands), not scaled.
        seconds: its length.
        rate, channels: of the file.
    """

    audio: str
    text: str
    frames: Frames
    seconds: float
    rate: int
    channels: int


def heard(audio: str, section: SpokenSection, text: str = "", where: str = "") -> Spoken:
    """A recording with its features, (0, bands) of one without samples.

    Raises:
        DataError: it cannot be read, or its rate is far from that of the section.
        ConfigError: soundfile is missing.
    """
    found = read_recording(audio, where)
    samples = torch.from_numpy(found.mono(section.sample_rate, where or audio[:80]))
    frames = np.zeros((0, section.bands), np.float32)
    if len(samples):
        frames = log_mel(samples, section.sample_rate, section.bands, section.window_ms, section.hop_ms).numpy()
    return Spoken(audio, text, frames, len(samples) / section.sample_rate, found.rate, found.samples.shape[1])


class Recordings(WholeExamples[Spoken]):
    """The recordings of a recipe by split."""

    section: SpokenSection
    unit = "recording"

    def _given(self, split: str) -> list[Spoken]:
        section = self.section
        named = [
            one
            for path in expand(getattr(section, split))
            for one in read_manifest(path, section.columns, section.encoding, section.format, section.folder)
        ]
        found, broken = list[Spoken](), list[str]()
        with progress_bar(f"reading {split}") as progress:
            for place, one in enumerate(named, 1):
                check_cancelled()
                self._add(one, found, broken)
                progress(place, len(named))
        if broken and not section.skip_broken:
            more = f" ({counted(len(broken), 'such recording')})" if len(broken) > 1 else ""
            raise DataError(f"{broken[0]}{more}; to leave out those that cannot be read: data.skip_broken=true")
        self.notes += self._told(split, named, found, broken)
        if full := [one for one in found if len(one.frames)]:
            return full
        raise DataError(f"data.{split}: expected recordings with samples; got none in {counted(len(named), 'file')}")

    def _add(self, one: Named, found: list[Spoken], broken: list[str]) -> None:
        try:
            found.append(heard(one.audio, self.section, self.section.written(one.text), one.shown))
        except DataError as error:
            broken.append(str(error))

    def _told(self, split: str, named: list[Named], found: Sequence[Spoken], broken: Sequence[str]) -> Iterator[str]:
        if broken:
            yield f"{split}: {counted(len(broken), 'recording')} that cannot be read, left out, such as {broken[0]}"
        if empty := [one.audio for one in found if not len(one.frames)]:
            yield f"{split}: {counted(len(empty), 'recording')} without samples, left out, such as {empty[0][:80]}"
        if others := [one.rate for one in found if one.rate != self.section.sample_rate]:
            rates = ", ".join(f"{rate:,}" for rate in sorted(set(others))[:NAMED])
            yield (
                f"{split}: {counted(len(others), 'recording')} resampled from {rates} to data.sample_rate "
                f"{self.section.sample_rate:,} a second"
            )
        if several := [one.channels for one in found if one.channels > 1]:
            yield f"{split}: {counted(len(several), 'recording')} with several channels, of which the mean is taken"
        yield from (f"{split}: {note}" for note in repeated(named))

    def scaling(self) -> NumberScaling:
        """Mean and deviation of each band in "train"."""
        frames = [one.frames for one in self.of("train")]
        return NumberScaling.fitted(frames, (), (self.section.bands,), "each")

    def alphabet(self) -> Alphabet:
        """The labels of "train".

        Raises:
            DataError: its texts are all empty.
        """
        found = Alphabet.of((one.text for one in self.of("train")), self.section.unit)
        if not found.symbols:
            raise DataError("data.train: expected texts of what is said; all are empty")
        return found

    def every(self, split: str, scaling: NumberScaling, alphabet: Alphabet) -> tuple[SpokenBatches, NDArray[np.bool_]]:
        """All recordings of a split in order, and whether the text of each can be spelled; the others have no label.

        Raises:
            DataError: none can, so that there is no loss.
        """
        coded = list(self.coded(split, alphabet))
        frames, labels = [scaling.scaled(one.frames) for one, _ in coded], [labels or [] for _, labels in coded]
        fit = np.array([labels is not None for _, labels in coded])
        if not fit.any():
            raise _none_spelled(split)
        return SpokenBatches(frames, labels, SCORED, stack=self.section.stack, max_steps=SCORED_STEPS), fit

    def batches(self, split: str, scaling: NumberScaling, alphabet: Alphabet, batch_size: int | None) -> SpokenBatches:
        """The recordings of a split whose texts can be spelled in their steps; `batch_size`: to learn from.

        Raises:
            DataError: there is none.
        """
        section, fit = self.section, self._spelled(split, alphabet)
        frames, labels = [scaling.scaled(one.frames) for one, _ in fit], [labels for _, labels in fit]
        if batch_size is None:
            return SpokenBatches(frames, labels, SCORED, stack=section.stack, max_steps=SCORED_STEPS)
        changes = Changes(section.masks, section.mask_bands, section.mask_frames, section.warp)
        least = [needed(one) for one in labels]
        return SpokenBatches(
            frames, labels, batch_size, stack=section.stack, seed=self._seed, changes=changes, steps=least
        )

    def _spelled(self, split: str, alphabet: Alphabet) -> list[tuple[Spoken, list[int]]]:
        fit = [(one, labels) for one, labels in self.coded(split, alphabet) if labels is not None]
        if not fit:
            raise _none_spelled(split)
        return fit

    def coded(self, split: str, alphabet: Alphabet) -> Iterator[tuple[Spoken, list[int] | None]]:
        """Each recording of a split with its labels; None if its text cannot be spelled in its steps."""
        for one in self.of(split):
            labels = alphabet.labels(one.text)
            yield one, labels if labels is not None and fits(labels, one.frames, self.section.stack) else None

    def told(self, alphabet: Alphabet) -> Iterator[str]:
        """Lines for the user: recordings, their lengths and texts of each split.

        Raises:
            DataError: no text of a split can be spelled, so that it would have no loss.
        """
        for split in self.splits():
            spoken = self.of(split)
            seconds = [one.seconds for one in spoken]
            words = sum(len(one.text.split()) for one in spoken)
            yield (
                f"{split}: {counted(len(spoken), 'recording')}, {sum(seconds) / 60:,.1f} minutes, the longest of "
                f"{max(seconds):.1f} s, {counted(words, 'word')}"
            )
            yield from self._suspicious(split, alphabet)
            self._spelled(split, alphabet)
        yield from (f"note: {note}" for note in self.notes)

    def _suspicious(self, split: str, alphabet: Alphabet) -> Iterator[str]:
        what = "left out" if split == "train" else "counted in wer and cer, not in loss"
        strange = [symbols for one in self.of(split) if (symbols := alphabet.strange(one.text))]
        if strange:
            told = ", ".join(map(repr, sorted(set().union(*strange))[:NAMED]))
            yield f"note: {split}: {counted(len(strange), 'text')} with symbols that train lacks ({told}), {what}"
        long = [one for one, labels in self.coded(split, alphabet) if labels is None and not alphabet.strange(one.text)]
        if long:
            first = long[0]
            yield (
                f"note: {split}: {counted(len(long), 'text')} longer than the steps of the recording, {what}, such as "
                f"{first.text[:40]!r} in {first.seconds:.2f} s of {first.audio[:80]}; if they belong together, lower "
                f"data.stack={self.section.stack}"
            )

    def digest(self, split: str) -> str:
        """The SHA-256 of all features and texts."""
        total = hashlib.sha256()
        for one in self.of(split):
            total.update(f"{one.frames.shape} {one.text}\n".encode() + one.frames.tobytes())
        return total.hexdigest()


def _none_spelled(split: str) -> DataError:
    return DataError(f"data.{split}: no text can be spelled by the labels of train in the steps of its recording")


def needed(labels: Sequence[int]) -> int:
    """The fewest steps that can spell labels."""
    return int(steps_needed(torch.tensor([labels], dtype=torch.int64).view(1, -1)))


def fits(labels: Sequence[int], frames: Frames, stack: int) -> bool:
    """Whether the steps of a recording can spell labels."""
    return needed(labels) <= -(-len(frames) // stack)

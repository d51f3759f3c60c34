"""Passages and pictures of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from everstep.data.spoken_batches import stacked
from everstep.decode.paths import alignment
from everstep.errors import DataError
from everstep.look.passage import Passage
from everstep.look.spikes import DrawnRecording, draw_spikes
from everstep.networks.recogniser import Recogniser
from everstep.runs.recognition import Recognition
from everstep.runs.spoken_data import Recordings, Spoken, heard
from everstep.runs.transcriptions import Heard, label_log_p

DRAWN = 3
"""Recordings that are drawn."""


def shown_recordings(recordings: Recordings, text: str | None, most: int) -> list[Spoken]:
    """The recordings that lines name (with their text after a tab, if any), or the longest of the last split.

    Raises:
        DataError: a line names none that can be read, or that has samples.
    """
    if text is None:
        spoken = recordings.of(recordings.splits()[-1])
        return sorted(spoken, key=lambda one: -len(one.frames))[:most]
    found = []
    for line in [line for line in text.splitlines() if line.strip()][:most]:
        audio, _, said = line.partition("\t")
        one = heard(audio.strip(), recordings.section, " ".join(said.split()))
        if not len(one.frames):
            raise DataError(f"{audio[:80]}: the recording has no samples")
        found.append(one)
    if not found:
        raise DataError("the text names no recording; give a path a line")
    return found


def spoken_passage(model: Recogniser, one: Spoken, given: Heard, characters: int) -> Passage:
    """A recording as the cells read it; a step counts as a character, and is named by its likeliest label."""
    steps = stacked(given.scaling.scaled(one.frames), given.section.stack)[:characters]
    ((_, log_p),) = label_log_p(model, given.batches([one]))
    names = [*given.alphabet.symbols, "-"]
    labels = [names[int(k)] for k in log_p[0, : len(steps)].argmax(-1)]
    return Passage(
        body=model.body,
        inputs=torch.from_numpy(steps).to(model.device),
        labels=labels,
        places=list(range(len(steps))),
        unit="step",
        shown="step",
    )


def spoken_pictures(
    model: Recogniser, recordings: Recordings, text: str | None, given: Heard, search: Recognition, out: Path
) -> Iterator[tuple[Path, str]]:
    """Of some recordings, their bands and the probabilities of labels over time."""
    for number, one in enumerate(shown_recordings(recordings, text, DRAWN), 1):
        ((_, log_p),) = label_log_p(model, given.batches([one]))
        rows = log_p[0].cpu().numpy()
        labels = search(rows)[0].labels
        section, alphabet = given.section, given.alphabet
        times = [
            (alphabet.symbols[label], (start + stop) / 2 * section.step_seconds)
            for label, start, stop in alignment(rows, labels)
        ]
        frame = section.step_seconds / section.stack
        p = log_p[0].exp().cpu().numpy()
        drawn = DrawnRecording(
            one.frames, frame, section.step_seconds, p, alphabet.symbols, one.text, alphabet.text(labels), times
        )
        yield out / f"spikes-{number}.png", draw_spikes(drawn, out / f"spikes-{number}.png")

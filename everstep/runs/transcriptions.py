"""What is said in recordings: texts with times, their figures, and log p of given texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.cancellation import check_cancelled
from everstep.data.readers.audio import INLINE
from everstep.data.spoken_batches import SpokenBatch, SpokenBatches
from everstep.decode.paths import Floats, alignment
from everstep.decode.prefix_beam import Spelled
from everstep.errors import DataError, check_finite
from everstep.heads.ctc import ctc_nats
from everstep.measures.edit_distance import error_rates
from everstep.networks.alphabet import Alphabet
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.recogniser import Recogniser
from everstep.networks.scoring import Score
from everstep.rivals.recordings import SpokenSet, spoken_rivals
from everstep.runs.predictions import blocks_of
from everstep.runs.recognition import Recognition
from everstep.runs.spoken_data import SCORED, SCORED_STEPS, Recordings, Spoken, SpokenSection, fits, heard
from everstep.runs.task import Prediction, Progress

MEANING = {
    "loss": "mean of -ln p a label",
    "wer": "word error rate: edits of words per word of the references",
    "cer": "character error rate: edits of characters per character of the references",
    "sentence_accuracy": "share of recordings without an error",
    "no_loss": "recordings whose text has unknown symbols or more labels than steps, which have no loss",
}


class Heard(NamedTuple):
    """What a recogniser needs besides its weights: the data section, its scaling, its labels."""

    section: SpokenSection
    scaling: NumberScaling
    alphabet: Alphabet

    def batches(self, spoken: Sequence[Spoken], labels: Sequence[Sequence[int]] | None = None) -> SpokenBatches:
        """Recordings in batches, in the order of their lengths; without `labels`, none is said."""
        frames = [self.scaling.scaled(one.frames) for one in spoken]
        stack = self.section.stack
        return SpokenBatches(frames, labels or [[]] * len(frames), SCORED, stack=stack, max_steps=SCORED_STEPS)


@torch.no_grad()
def label_log_p(model: Recogniser, batches: SpokenBatches) -> Iterator[tuple[SpokenBatch, Tensor]]:
    """Each batch with log p (B, T, K + 1), in nats."""
    model.eval()
    for index in range(len(batches)):
        check_cancelled()
        batch = batches.batch(0, index).to(model.device)
        yield batch, model(batch.inputs, batch.lengths)


def figures(
    model: Recogniser,
    recordings: Recordings,
    split: str,
    given: Heard,
    search: Recognition,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """The loss a label, and the error rates of the texts that the search finds, of a split."""
    batches, fit = recordings.every(split, given.scaling, given.alphabet)
    spoken, found = recordings.of(split), dict[int, str]()
    nats, count = 0.0, 0
    for done, (batch, log_p) in enumerate(label_log_p(model, batches), 1):
        each = ctc_nats(log_p, batch.labels, batch.lengths).double().cpu()
        nats += float(each[torch.from_numpy(fit[batch.places.cpu().numpy()])].sum())
        count += batch.count
        for place, rows in _rows(batch, log_p):
            found[place] = given.alphabet.text(search(rows)[0].labels)
        progress(done, len(batches))
    rates = error_rates((one.text, found[place]) for place, one in enumerate(spoken))
    more = {} if fit.all() else {"no_loss": int((~fit).sum())}
    return {"recordings": len(spoken), "labels": count, "loss": nats / max(count, 1), **rates._asdict(), **more}


def rivals_of(recordings: Recordings, split: str, given: Heard, quick: bool) -> list[dict[str, Any]]:
    """The baselines of `spoken_rivals` on a split."""
    train, asked = (
        SpokenSet([given.scaling.scaled(one.frames) for one in spoken], [one.text for one in spoken])
        for spoken in (recordings.of("train"), recordings.of(split))
    )
    return spoken_rivals(train, asked, quick)


def _rows(batch: SpokenBatch, log_p: Tensor) -> Iterator[tuple[int, Floats]]:
    """The place of each recording of a batch, and its log p (T, K + 1)."""
    every = log_p.cpu().numpy()
    for row, (place, length) in enumerate(zip(batch.places.tolist(), batch.lengths.tolist(), strict=True)):
        yield place, every[row, :length]


def transcriptions(
    model: Recogniser, lines: Iterable[str], given: Heard, search: Recognition, n_best: int = 1
) -> Iterator[Prediction]:
    """The text of each recording, or the n best as lines of rank, log p and text; the record has the times of labels.

    Raises:
        DataError: a line names no recording that can be read.
    """
    for block in blocks_of(_asked(lines, given.section), SCORED):
        full = [place for place, one in enumerate(block) if len(one.frames)]
        rows = dict[int, Floats]()
        for batch, log_p in label_log_p(model, given.batches([block[place] for place in full])) if full else ():
            rows |= {full[place]: found for place, found in _rows(batch, log_p)}
        for place, one in enumerate(block):
            found = search(rows[place], n_best) if place in rows else []
            yield _prediction(one, rows.get(place), found, given, n_best)


def _asked(lines: Iterable[str], section: SpokenSection) -> Iterator[Spoken]:
    for number, line in enumerate(lines, 1):
        audio = line.strip()
        if not audio:
            raise DataError(f"line {number}: expected the path of a recording; it is blank")
        yield heard(audio, section, where=f"line {number}" + ("" if audio.startswith(INLINE) else f": {audio}"))


def _prediction(one: Spoken, log_p: Floats | None, found: list[Spelled], given: Heard, n_best: int) -> Prediction:
    named = one.audio if not one.audio.startswith(INLINE) else f"{one.audio[:40]}…"
    head = {"audio": named, "seconds": round(one.seconds, 4)}
    if log_p is None:
        return Prediction("", {**head, "text": "", "log_p": 0.0, "labels": []})
    records = [_record(log_p, spelled, given) for spelled in found]
    if n_best == 1:
        return Prediction(records[0]["text"], {**head, **records[0]})
    printed = (f"{rank}\t{record['log_p']:.4f}\t{record['text']}" for rank, record in enumerate(records, 1))
    return Prediction("\n".join(printed), {**head, **records[0], "n_best": records})


def _record(log_p: Floats, found: Spelled, given: Heard) -> dict[str, Any]:
    """A text: its log p over all paths, and each label with the seconds of its likeliest path, and its largest p."""
    target = torch.tensor([found.labels], dtype=torch.int64).view(1, -1)
    seconds = given.section.step_seconds
    return {
        "text": given.alphabet.text(found.labels),
        "log_p": -ctc_nats(torch.from_numpy(log_p.copy())[None], target).item(),
        "labels": [
            {
                "label": given.alphabet.symbols[one.label],
                "start": round(one.start * seconds, 4),
                "end": round(one.stop * seconds, 4),
                "p": float(torch.from_numpy(log_p[one.start : one.stop, one.label]).max().exp()),
            }
            for one in alignment(log_p, found.labels)
        ],
    }


def text_scores(model: Recogniser, lines: Sequence[str], given: Heard, first_line: int) -> list[Score]:
    """log p(text | recording) of lines `audio<TAB>text`, in nats; −∞ where there are fewer steps than labels.

    Raises:
        DataError: a line has no tab, a symbol that is no label, or names no recording that can be read.
    """
    spoken, targets = [], []
    for number, line in enumerate(lines, first_line):
        audio, tab, text = line.partition("\t")
        if not tab:
            raise DataError(
                f"line {number}: expected a recording and its text with a tab between them; got {line[:60]!r}"
            )
        text = given.section.written(" ".join(text.split()))
        labels = given.alphabet.labels(text)
        if labels is None:
            strange = ", ".join(map(repr, sorted(given.alphabet.strange(text))[:5]))
            raise DataError(f"line {number}: this run has no label for {strange}")
        one = heard(audio.strip(), given.section, text, f"line {number}")
        if not len(one.frames):
            raise DataError(f"line {number}: the recording has no samples")
        spoken.append(one)
        targets.append(labels)
    found = [0.0] * len(lines)
    for batch, log_p in label_log_p(model, given.batches(spoken, targets)) if lines else ():
        each = ctc_nats(log_p, batch.labels, batch.lengths)
        for place, nats in zip(batch.places.tolist(), each.tolist(), strict=True):
            if fits(targets[place], spoken[place].frames, given.section.stack):
                check_finite("the score of a line", nats)
            found[place] = -nats
    return [Score(logp, len(labels), line, ()) for logp, labels, line in zip(found, targets, lines, strict=True)]

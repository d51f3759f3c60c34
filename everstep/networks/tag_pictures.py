"""Pictures of a tagger: confusion of tags, coloured spans, relevance of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from everstep.data.readers.tagged_columns import Sentence
from everstep.data.tagged_batches import TaggedBatch, TaggedBatches
from everstep.heads import CRF
from everstep.look.confusion import draw_confusion
from everstep.look.passage import Passage
from everstep.look.relevance import CHARACTERS, draw_relevance
from everstep.look.tagged_text import Word, draw_tagged, tagged_html
from everstep.measures.tag_schemes import letter_and_type
from everstep.networks.learned_tags import Learned
from everstep.networks.sequence_tagger import SequenceTagger
from everstep.networks.tag_columns import TagColumn
from everstep.networks.tag_decoding import decoded, tag_confusion

EXAMPLES = 12
"""Sentences to draw."""
TAGS, WIDE = 20, 80
"""Most tags whose words are drawn by character, and most characters in a row."""
MEASURED, LOOKED_AT, LONGEST = 2000, 500, 100
"""Held-out sentences for the confusion, sentences searched for unknown words, and most words of one of the latter."""


def tag_pictures(
    model: SequenceTagger, learned: Learned, held_out: Sequence[Sentence], own: Sequence[Sentence] | None, out: Path
) -> Iterator[tuple[Path, str]]:
    """Draw the confusion of tags on held-out sentences, some sentences coloured by tag, and relevant characters."""
    column, some = learned.columns[0], held_out[:MEASURED]
    found = [of[0].tags[0] for of in decoded(model, learned.coded(some), learned.columns)]
    measured, names = tag_confusion([sentence.tags[0] for sentence in some], found, column)
    yield out / "confusion.png", draw_confusion(measured, names, out / "confusion.png", "word")
    shown = list(own if own is not None else some[:: max(1, len(some) // EXAMPLES)])[:EXAMPLES]
    tags = [of[0].tags[0] for of in decoded(model, learned.coded(shown), learned.columns)]
    words = [_coloured(sentence, predicted, column) for sentence, predicted in zip(shown, tags, strict=True)]
    draw_tagged(words, out / "tags.png")
    tagged_html(words, out / "tags.html", f"Tags in column {column.name}")
    wrong = sum(word.truth is not None for sentence in words for word in sentence)
    told = "" if own is not None else f" {wrong} of {sum(map(len, words))} words have another, in brackets."
    yield out / "tags.png", f"Each word on the colour of the tag that is predicted for it.{told}"
    yield out / "tags.html", "The same in a browser: errors are underlined; hover over a word to see its tag."
    if model.reader.characters is not None and (rows := _telling(model, learned, list(own or some))):
        yield out / "characters.png", draw_relevance(rows, out / "characters.png", CHARACTERS)


def _coloured(sentence: Sentence, predicted: Sequence[str], column: TagColumn) -> list[Word]:
    truths = sentence.tags[0] if sentence.tags else predicted
    return [
        Word(word, _shown(tag, column), None if tag == truth else _shown(truth, column))
        for word, tag, truth in zip(sentence.words, predicted, truths, strict=True)
    ]


def _shown(tag: str, column: TagColumn) -> str:
    """The type of a span tag, "" outside of spans; any other tag unchanged."""
    if column.scheme is None:
        return tag
    letter, kind = letter_and_type(tag) or ("", tag)
    return "" if letter == "O" else kind or letter


def _telling(
    model: SequenceTagger, learned: Learned, sentences: Sequence[Sentence]
) -> list[tuple[str, list[str], list[float]]]:
    """For each predicted tag (or span type), some words not seen in training: their characters with relevance."""
    column = learned.columns[0]
    rows: dict[str, tuple[list[str], list[float]]] = {}
    seen: set[str] = set()
    for sentence in (one for one in sentences[:LOOKED_AT] if 0 < len(one.words) <= LONGEST):
        unknown = [place for place, word in enumerate(sentence.words) if _is_new(word, learned) and word not in seen]
        if not unknown:
            continue
        coded = learned.coded([sentence])
        (found,) = decoded(model, coded, learned.columns)
        batch = TaggedBatches(coded, 1, shuffle=False).batch(0, 0)
        for place in unknown:
            word, tag = sentence.words[place], _shown(found[0].tags[0][place], column)
            characters, values = rows.setdefault(tag, ([], [])) if tag else ([], [])
            if tag and len(characters) + len(word) < WIDE:
                seen.add(word)
                characters += [*word, " "]
                values += [*_relevance(model, batch, place, found[0].learned[place]), 0.0]
    kept = sorted((tag, *row) for tag, row in rows.items() if row[0])
    return kept[:TAGS]


def _is_new(word: str, learned: Learned) -> bool:
    return not learned.words.knows(word) and 2 < len(word) <= 30


def _relevance(model: SequenceTagger, batch: TaggedBatch, place: int, tag: int) -> list[float]:
    """Gradient × embedding of each character of a word for log p of its tag, scaled to a maximum of 1 or −1."""
    batch = batch.to(model.reader.embedding.weight.device)
    characters = model.reader.characters
    assert characters is not None
    embedded = characters.embedding(batch.spelled).detach().requires_grad_()
    with torch.enable_grad():
        spelled = characters.read(embedded, batch.spelled_lengths)
        ys = model.encode(model.reader.joined(batch, spelled), batch.lengths)
        head = model.heads[0]
        # only of this tag, since the logarithm of a forbidden tag has no derivative
        log_p = head.marginals(ys)[0, place, tag].log() if isinstance(head, CRF) else head.predict(ys)[0, place, tag]  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(log_p, embedded)
    form = batch.forms[0, place]
    found = (gradient * embedded).sum(-1)[form, : int(batch.spelled_lengths[form])].detach()
    most = float(found.abs().max()) or 1.0
    return (found / most).tolist()  # type: ignore[no-any-return]


def tag_passage(model: SequenceTagger, learned: Learned, sentences: Sequence[Sentence]) -> Passage:
    """The first sentence as the cells read it, without step-by-step targets."""
    sentence = sentences[0]
    device = model.reader.embedding.weight.device
    batch = TaggedBatches(learned.coded([sentence]), 1, shuffle=False).batch(0, 0).to(device)
    with torch.no_grad():
        inputs = model.reader(batch)[0]
    labels = [f"{word} " for word in sentence.words]
    return Passage(model.body, inputs, labels, list(range(len(labels))), "word", "word")

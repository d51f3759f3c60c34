"""Answers to questions on stories: predictions, baselines and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from everstep.data import Tokenizer
from everstep.data.readers.stories import StoryQuestion
from everstep.look.read_sentences import ReadStory, draw_read_stories
from everstep.networks.answers import Answers
from everstep.networks.classifying import to_score
from everstep.networks.memory_network import MemoryNetwork
from everstep.runs.labelled_data import label_figures
from everstep.runs.predictions import blocks_of
from everstep.runs.story_data import Stories, spoken
from everstep.runs.task import Prediction

BLOCK = 256
"""Questions answered at a time."""
SHOWN = 6
"""Questions that are drawn."""


@torch.inference_mode()
def read_stories_of(
    model: MemoryNetwork, stories: Stories, tokenizer: Tokenizer, texts: list[str]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Of each text: the probability of every answer (K,), and what each hop reads (hops, sentences kept)."""
    model.eval()
    batches = to_score(stories.rows(texts, tokenizer, model.places))
    found: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    for index in range(len(batches)):
        batch = batches.batch(0, index).to(model.device)
        log_p, weights = model.answered(batch.inputs, batch.lengths)
        p = log_p.exp().cpu().double().numpy()
        for row, (place, length) in enumerate(zip(batch.places.tolist(), batch.lengths.tolist(), strict=True)):
            found[place] = p[row], weights[row, :, : length - 1].cpu().double().numpy()
    yield from (found[place] for place in range(len(texts)))


def story_predictions(
    model: MemoryNetwork, stories: Stories, tokenizer: Tokenizer, asked: Iterable[StoryQuestion]
) -> Iterator[Prediction]:
    """answer<TAB>probability of each question; the record has all probabilities, and what each hop reads."""
    for block in blocks_of(asked, BLOCK):
        answers = read_stories_of(model, stories, tokenizer, [one.text for one in block])
        for one, (p, weights) in zip(block, answers, strict=True):
            text, record = model.answers.said(p)
            kept = one.story[len(one.story) - weights.shape[1] :]
            read = [{"sentence": said, "hops": hops} for said, hops in zip(kept, weights.T.tolist(), strict=True)]
            yield Prediction(text, {"line": one.line, "question": one.question, **record, "read": read})


def story_pictures(
    model: MemoryNetwork, stories: Stories, tokenizer: Tokenizer, chosen: list[tuple[str, str]], out: Path
) -> Iterator[tuple[Path, str]]:
    """Draw which sentences each hop reads of some questions, given with their answers."""
    found = []
    texts = [text for text, _ in chosen]
    for (text, answer), (p, weights) in zip(chosen, read_stories_of(model, stories, tokenizer, texts), strict=True):
        *story, question = text.split("\n")
        said, _, _ = model.answers.said(p)[0].partition("\t")
        found.append(ReadStory(story[len(story) - weights.shape[1] :], question, said, answer, weights))
    yield out / "hops.png", draw_read_stories(found, out / "hops.png")


def story_rivals(stories: Stories, answers: Answers, split: str, quick: bool = False) -> list[dict[str, Any]]:
    """The most frequent answer to the same question, and baselines on the words of story and question."""
    from everstep.rivals.same_question import same_question
    from everstep.rivals.text_classes import WordTexts, text_rivals

    def read(name: str) -> WordTexts:
        found = stories.answerable(name, answers)
        return WordTexts([_marked(text) for text in found.texts], answers.targets(found))

    train, test = read("train"), read(split)
    if stories.section.label_separator is not None:
        return label_figures(*train, *test)
    valid = read("valid") if "valid" in stories.splits() and split != "valid" and not quick else None
    asked = [
        [text.rpartition("\n")[2].lower() for text in stories.answerable(name, answers).texts]
        for name in ("train", split)
    ]
    same = same_question(asked[0], train.targets, asked[1], test.targets, len(answers.names))
    others = [rival.record(len(train.words)) for rival in text_rivals(train, test, valid, classes=len(answers.names))]
    return [with_unknown(one, len(test.words), stories.unanswerable(split, answers)) for one in (same, *others)]


def with_unknown(figures: dict[str, Any], known: int, unknown: int) -> dict[str, Any]:
    """Figures of `known` questions, of whose accuracy `unknown` more count as wrong."""
    return {**figures, "accuracy": figures["accuracy"] * known / (known + unknown)} if unknown else figures


def _marked(text: str) -> list[str]:
    """The words of story and question; those of the question are other words."""
    story, _, question = text.rpartition("\n")
    asked = [f"asked:{word.lower()}" for word in spoken(question)]
    return [*(word.lower() for word in spoken(story)), *asked]

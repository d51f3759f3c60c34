"""Stories with questions: numbered lines as of bAbI, or JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from everstep.data.readers.labelled import Labelled, labelled_of
from everstep.data.readers.labelled_rows import Row, Skipped
from everstep.data.text.text_files import expand, file_lines
from everstep.errors import DataError

_NUMBERED = re.compile(r"\s*(\d+)\s+(\S.*?)\s*$")
FORM = "numbered lines, `1 Mary went home.`, with questions among them, `2 Where is Mary?`"


class StoryQuestion(NamedTuple):
    """A question: the sentences before it, its words, its answer (None if it is not told), and its line."""

    story: tuple[str, ...]
    question: str
    answer: str | None
    line: int

    @property
    def text(self) -> str:
        """Sentences and question, one below the other."""
        return "\n".join([*self.story, self.question])


def questions_in(lines: Iterable[str], where: str, answer: str = "answer") -> Iterator[StoryQuestion]:
    """The questions of lines, in order, each with the sentences of its story before it.

    A line is a number and a sentence; the number 1 begins a story. A question has a tab after it, with the answer and
    perhaps the numbers of the sentences that it follows from, or is the sentence that ends in `?`. Or each line is a
    JSON object with `story` (a list of sentences), `question` and perhaps an answer.

    >>> [one.text for one in questions_in(["1 Mary ran.", "2 Who ran?\\tMary\\t1", "1 Who is here?"], "x")]
    ['Mary ran.\\nWho ran?', 'Who is here?']

    Args:
        lines: the lines; blank ones are skipped.
        where: their source, for messages.
        answer: the key of answers in JSON.

    Raises:
        DataError: a line is of neither form, or numbers do not rise.
    """
    story: list[str] = []
    last = 0
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if line.lstrip().startswith("{"):
            yield _of_json(line, f"{where}, line {place}", place, answer)
            continue
        sentence, tab, rest = line.rstrip("\n").partition("\t")
        found = _NUMBERED.match(sentence)
        if not found:
            raise DataError(f"{where}, line {place}: expected {FORM}, or a JSON object; got {line.strip()[:60]!r}")
        number = int(found[1])
        if number != 1 and number <= last:
            raise DataError(f"{where}, line {place}: expected 1, which begins a story, or a number above {last}; "
                            f"got {number}")  # fmt: skip
        if number == 1:
            story = []
        last = number
        if tab or found[2].endswith("?"):
            told = rest.split("\t")[0].strip()
            if tab and not told:
                raise DataError(f"{where}, line {place}: expected an answer after the tab; got none")
            yield StoryQuestion(tuple(story), found[2], told or None, place)
        else:
            story.append(found[2])


def _of_json(line: str, where: str, place: int, key: str) -> StoryQuestion:
    """The question of a JSON object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object; {error}") from None
    story, question, answer = (found.get(name) for name in ("story", "question", key))
    sentences = isinstance(story, list) and all(isinstance(one, str) for one in story)
    if not sentences or not isinstance(question, str) or not question.strip():
        raise DataError(f'{where}: expected {{"story": ["…", …], "question": "…"}}; got {line.strip()[:60]!r}')
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise DataError(f"{where}: expected a text as {key}; got {answer!r}")
    kept = (" ".join(one.split()) for one in story)
    return StoryQuestion(
        tuple(one for one in kept if one), " ".join(question.split()), answer and answer.strip(), place
    )


def read_stories(
    paths: str | Sequence[str], encoding: str = "utf-8", answer: str = "answer", fewest_answers: int = 2
) -> Labelled:
    """The questions of files (plain, `.gz`, `.xz`), with their answers as labels; a text holds the story's sentences
    and the question, a line each.

    Raises:
        DataError: a file is missing, empty or in another encoding, a line is of no known form (see `questions_in`), a
            question has no answer, there is none, or fewer answers than `fewest_answers`.
    """
    files = expand([paths] if isinstance(paths, str) else list(paths))
    rows = (row for path in files for row in _rows(path, encoding, answer))
    return labelled_of(rows, files, None, fewest_answers, "question")


def _rows(path: Path, encoding: str, answer: str) -> Iterator[Row | Skipped]:
    for one in questions_in(file_lines(path, encoding), str(path), answer):
        if one.answer is None:
            raise DataError(f"{path}, line {one.line}: expected an answer after a tab: {one.question!r}")
        yield Row(one.text, one.answer, path, one.line)

"""Lines to translate, with phrases that their translations must contain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from everstep.data.readers.text_pairs import check_characters, one_line
from everstep.data.text.language import Language
from everstep.decode.constraints import Phrases
from everstep.errors import ConfigError, DataError
from everstep.storage.reading import json_text

FORMATS = ("text", "tsv", "jsonl")
"""text: a text a line; tsv: a text, and phrases after it, with tabs between; jsonl: {"text": …, "phrases": […]}."""
KEYS = ("text", "phrases")
"""Those of a JSON object; any other is refused, since a misspelt one would be a wish that nobody hears."""


class Wish(NamedTuple):
    """A text to translate, the phrases that its translation must contain, and the number of its line from 1."""

    text: str
    phrases: tuple[str, ...]
    line: int


def wishes(lines: Iterable[str], format: str | None) -> Iterator[Wish]:
    """The lines in one of FORMATS; None is text.

    >>> list(wishes(["a man\\tMann\\tein"], "tsv"))
    [Wish(text='a man', phrases=('Mann', 'ein'), line=1)]

    Raises:
        ConfigError: there is no such format; at the call.
        DataError: a line is not of the format, or a phrase is blank; the message has its number.
    """
    if format not in (None, *FORMATS):
        raise ConfigError(f"predict: expected a format among {', '.join(FORMATS)}; got {format!r}")
    return (_wish(line.removesuffix("\n"), number, format) for number, line in enumerate(lines, 1))


def _wish(line: str, number: int, format: str | None) -> Wish:
    if format == "tsv":
        text, *phrases = line.split("\t")
    elif format == "jsonl" and line.strip():
        text, phrases = _object(line, number)
    else:
        text, phrases = line, []
    phrases = [one_line(phrase) for phrase in phrases]
    if "" in phrases:
        raise DataError(
            f"line {number} to translate: expected phrases with some text, but number {phrases.index('') + 1} is blank"
        )
    return Wish(one_line(text), tuple(phrases), number)


def _object(line: str, number: int) -> tuple[str, list[str]]:
    """The text and the phrases of a JSON object."""
    where = f"line {number} to translate"
    expected = 'expected an object such as {"text": "a man", "phrases": ["Mann"]}'
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); {expected}: {line[:60]}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise DataError(f"{where}: {expected}, got {json_text(entry)[:60]}")
    if unknown := [key for key in entry if key not in KEYS]:
        raise DataError(f"{where}: expected no keys but {', '.join(KEYS)}; got {json_text(unknown[0])[:60]}")
    phrases = entry.get("phrases", [])
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise DataError(f'{where}: expected a list of strings at "phrases", got {json_text(phrases)[:60]}')
    for text in (entry["text"], *phrases):
        check_characters(where, text)
    return entry["text"], phrases


def constraint(wish: Wish, target: Language, own: bool = False) -> Phrases | None:
    """The automaton of translations with every phrase of a wish; None without a phrase.

    With `own`, translations have only tokens that training texts of the target language have.

    Raises:
        DataError: a phrase has an unknown word or a token that cannot be written, or no tokens.
    """
    if not wish.phrases:
        return None
    coded = target.encode(wish.phrases)
    unk, rows = target.tokenizer.unk_id, []
    for number, phrase in enumerate(wish.phrases):
        *ids, _ = coded.row(number)
        where = f"line {wish.line} to translate: the phrase {phrase!r}"
        if unk is not None and unk in ids:
            unknown = next((word for word in target.words(phrase) if unk in target.encode([word]).tokens), phrase)
            raise DataError(f"{where} has {unknown!r}, which is not in the vocabulary of the translations")
        if not ids or target.end in ids:
            raise DataError(f"{where} cannot be written with the vocabulary of the translations")
        if own and target.only is not None and (foreign := [token for token in ids if token not in target.only]):
            raise DataError(
                f"{where} has {target.pieces(foreign[:1])[0]!r}, which no training text of the target language has "
                "(decode.own_tokens=false allows it)"
            )
        rows.append(ids)
    return Phrases(rows)

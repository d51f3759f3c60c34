"""Measures, neighbours and the map of word vectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.word_sets import Analogies, SimilarWords, read_analogies, read_similarities
from everstep.data.text.tokenizer import Tokenizer
from everstep.measures.word_relations import nearest_rows, rank_correlation, solve_analogies, unit_rows
from everstep.networks.word_embedding import WordEmbedding
from everstep.runs.task import Prediction
from everstep.runs.word_text import WordTextSection

MEANING = {
    "loss": "nats of all targets near a word, negative ones included, per word of the text",
    "spearman": "mean over the files of data.similarity: rank correlation of cosines with what people said",
    "analogies": "share of data.analogies answered by 3CosAdd, of those whose words all have a vector",
    "analogies_by_product": "the same by 3CosMul",
    "questions": "analogies whose words all have a vector",
    "unanswered": "analogies with a word that has no vector; they do not count",
}
_TERM = re.compile(r"\s+([+-])\s+")


class WordVectorView:
    """The vectors of a model by word: h of each known word, and their directions."""

    def __init__(self, model: WordEmbedding):
        self.model = model
        self.vectors = model.composed()
        self.units = unit_rows(self.vectors)
        self.places = {word: row for row, word in enumerate(model.words) if model.known[row]}

    def place(self, word: str) -> int | None:
        """The row of a word, else of its lower case, else None."""
        return self.places.get(word, self.places.get(word.lower()))

    def vector(self, word: str) -> NDArray[np.float32] | None:
        """The direction of a word: its own, or that of its n-grams if it is not in the vocabulary; else None."""
        row = self.place(word)
        if row is not None:
            found: NDArray[np.float32] = self.units[row]
            return found
        letters = self.model.of_letters(word)
        return None if letters is None else unit_rows(letters[None])[0]


def similarity_figures(view: WordVectorView, sets: Iterable[SimilarWords]) -> dict[str, Any]:
    """Spearman's ρ of each file, over the pairs whose words both have a vector, and the mean over files."""
    rows: dict[str, dict[str, Any]] = {}
    for name, pairs, scores in sets:
        found = [(view.vector(one), view.vector(other)) for one, other in pairs]
        both = [(float(a @ b), score) for (a, b), score in zip(found, scores, strict=True)
                if a is not None and b is not None]  # fmt: skip
        rho = rank_correlation(*np.array(both).T) if len(both) > 1 else float("nan")
        rows[name] = {
            "spearman": None if np.isnan(rho) else rho,
            "pairs": len(both),
            "left_out": len(pairs) - len(both),
        }
    known = [row["spearman"] for row in rows.values() if row["spearman"] is not None]
    mean = {"spearman": float(np.mean(known))} if known else {}
    return {**mean, "similarity": rows} if rows else {}


def analogy_figures(view: WordVectorView, sections: Iterable[Analogies]) -> dict[str, Any]:
    """The share of right answers of each section and of all; a question counts if its words are in the vocabulary."""
    rows: dict[str, dict[str, Any]] = {}
    right, asked, left_out = np.zeros(2), 0, 0
    for name, questions in sections:
        places = [[view.place(word) for word in question] for question in questions]
        whole = np.array([row for row in places if None not in row], np.int64).reshape(-1, 4)
        solved = solve_analogies(view.units, whole[:, :3], view.model.known)
        hits = np.array([(answers == whole[:, 3]).sum() for answers in solved])
        right, asked, left_out = right + hits, asked + len(whole), left_out + len(places) - len(whole)
        share = [None, None] if not len(whole) else (hits / len(whole)).tolist()
        rows[name] = {"analogies": share[0], "analogies_by_product": share[1], "questions": len(whole)}
    if not rows:
        return {}
    shares = (right / asked).tolist() if asked else [None, None]
    told = {"analogies": shares[0], "analogies_by_product": shares[1], "questions": asked, "unanswered": left_out}
    return {**{key: value for key, value in told.items() if value is not None}, "by_section": rows}


def figures(model: WordEmbedding, data: WordTextSection, analogies: bool = True) -> dict[str, Any]:
    """The figures on the files of a recipe; none without files."""
    view = WordVectorView(model)
    found: dict[str, Any] = {}
    if data.similarity is not None:
        found |= similarity_figures(view, read_similarities(data.similarity))
    if data.analogies is not None and analogies:
        found |= analogy_figures(view, read_analogies(data.analogies))
    return found


def neighbours(model: WordEmbedding, tokenizer: Tokenizer, most: int, lines: Iterable[str]) -> Iterator[Prediction]:
    """The words nearest to that of each line, or to a sum like `king - man + woman`, with their cosines.

    A line with a word that has no vector is answered by saying so.
    """
    view = WordVectorView(model)
    for line in lines:
        query = tokenizer.normalize(line).strip()
        first, *rest = _TERM.split(query)
        terms = [(1.0, first), *((1.0 if sign == "+" else -1.0, word) for sign, word in zip(rest[::2], rest[1::2],
                                                                                             strict=True))]  # fmt: skip
        terms = [(sign, "_".join(word.split())) for sign, word in terms]
        vectors = [view.vector(word) for _, word in terms]
        unknown = [word for (_, word), vector in zip(terms, vectors, strict=True) if vector is None]
        if unknown:
            said = "nothing was asked" if not query else f"no vector of {', '.join(unknown)}"
            yield Prediction(f"{query}\t({said})", {"query": query, "unknown": unknown, "neighbours": []})
            continue
        target = sum(sign * vector for (sign, _), vector in zip(terms, vectors, strict=True) if vector is not None)
        own = [row for _, word in terms if (row := view.place(word)) is not None]
        near = [(model.words[row], cosine)
                for row, cosine in nearest_rows(view.units, np.asarray(target), most, own, model.known)]  # fmt: skip
        text = "\t".join([query, *(f"{word} {cosine:.3f}" for word, cosine in near)])
        record = [{"word": word, "cosine": round(cosine, 6)} for word, cosine in near]
        yield Prediction(text, {"query": query, "neighbours": record})

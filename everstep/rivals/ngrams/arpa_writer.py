"""Writing ARPA files of back-off n-gram models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from everstep.errors import DataError
from everstep.rivals.ngrams.arpa_reader import BEGIN, END, LN10
from everstep.rivals.ngrams.ngram_table import NGramTable

_BLOCK = 1 << 15  # n-grams that are written at a time
_BEFORE_ALL = -99
"""log10 p of <s>, which is never predicted."""


def arpa_pieces(table: NGramTable, names: Sequence[str], boundary: int) -> Iterator[bytes]:
    """The content of an ARPA file in pieces, with log10 p to 7 digits.

    Args:
        table: its n-grams.
        names: the words by id.
        boundary: the word that stands for both ends of a sentence: <s> as the first word of an n-gram, </s> as the
            last.

    Raises:
        DataError: a word is empty or holds white space, or `boundary` is within an n-gram.

    >>> table = NGramTable(2, [], [np.log([0.75, 0.25])], [])
    >>> print(b"".join(arpa_pieces(table, ["<eos>", "a"], 0)).decode().replace("\\t", " ").strip())
    \\data\\
    ngram 1=3
    <BLANKLINE>
    \\1-grams:
    -99 <s>
    -0.1249387 </s>
    -0.60206 a
    <BLANKLINE>
    \\end\\
    """
    for number, name in enumerate(names):
        if number != boundary and (len(name.split()) != 1 or name in (BEGIN, END)):
            raise DataError(f"ARPA files separate words by spaces, so that the symbol {name!r} cannot be written")
    sizes = [len(table.log_p[0]) + 1, *map(len, table.log_p[1:])]
    header = "".join(f"ngram {n}={size}\n" for n, size in enumerate(sizes, 1))
    yield f"\\data\\\n{header}".encode()
    for n in range(1, table.order + 1):
        yield f"\n\\{n}-grams:\n".encode()
        for start in range(0, len(table.log_p[n - 1]), _BLOCK):
            yield _block(table, names, boundary, n, start)
    yield b"\n\\end\\\n"


def _block(table: NGramTable, names: Sequence[str], boundary: int, n: int, start: int) -> bytes:
    numbers = np.arange(start, min(start + _BLOCK, len(table.log_p[n - 1])))
    log_p = (np.asarray(table.log_p[n - 1][numbers], np.float64) / LN10).tolist()
    last = n == table.order
    backoff = [0.0] * len(numbers) if last else (np.asarray(table.backoff[n - 1][numbers], float) / LN10).tolist()
    rows = table.ngrams(n, numbers)
    if (rows[:, 1:-1] == boundary).any():
        raise DataError("an n-gram of this model crosses the end of a line, which ARPA files cannot say")
    lines = []
    for row, p, b in zip(rows.tolist(), log_p, backoff, strict=True):
        words = [names[word] for word in row]
        if row[-1] == boundary:
            words[-1] = END
            if n == 1:
                lines.append(f"{_BEFORE_ALL}\t{BEGIN}" + ("" if last else f"\t{b:.7g}"))
        if n > 1 and row[0] == boundary:
            words[0] = BEGIN
        weight = "" if last or row[-1] == boundary else f"\t{b:.7g}"
        lines.append(f"{p:.7g}\t{' '.join(words)}{weight}")
    return "".join(f"{line}\n" for line in lines).encode()

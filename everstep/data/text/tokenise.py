"""Tokenisation of files, block by block, in several processes, with the starts of documents or lines."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import accumulate, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.text.text_files import WHOLE, Block, Span, spanned
from everstep.data.text.tokenizer import Tokenizer
from everstep.errors import DataError
from everstep.processes import process_pool

SEQUENCES = ("stream", "documents", "lines")
Layout = Literal["stream", "paragraphs", "files", "lines"]
INLINE_BYTES = 8 << 20
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_IN_FLIGHT = 2  # blocks per worker, so that reading never runs far ahead of writing


class TokenisedBlock(NamedTuple):
    """A tokenised block.

    Attributes:
        tokens: (n,) ids.
        starts: (k,) int64, the starts of documents or lines in `tokens`.
        counts: (3,) int64: numbers of characters, bytes, words.
        skipped: number of skipped blank lines or files.
        consumed: stored bytes of all files read up to the end of this block.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    skipped: int
    consumed: int


class _Cut(NamedTuple):
    """The text of a block without dropped lines, and what joining it to its neighbours needs."""

    text: str
    lines: list[int]  # indices of the kept lines that start a document or line
    open_start: bool  # whether its first kept line continues the previous block
    open_end: bool  # whether its last line was kept
    skipped: int


def tokenised(
    files: list[Path], tokenizer: Tokenizer, encoding: str, layout: Layout, workers: int | None, span: Span = WHOLE
) -> Generator[TokenisedBlock]:
    """The tokenised blocks of all files in order; at most `_IN_FLIGHT` blocks per worker are in memory at once.

    Raises:
        DataError: as `file_blocks` and `Tokenizer.encode`.
    """
    count = min(workers or os.cpu_count() or 1, 61)  # 61 is the limit of Windows
    small = sum(path.stat().st_size for path in files) < INLINE_BYTES
    work = _tokenised_here if count == 1 or small else _tokenised_by_workers
    return _joined(work(spanned(files, encoding, span=span), tokenizer, layout, count), layout)


class _Encoded(NamedTuple):
    part: TokenisedBlock
    path: Path
    open_start: bool
    open_end: bool


def _encode(block: Block, tokenizer: Tokenizer, layout: Layout) -> _Encoded:
    """Tokenise one block."""
    cut = _cut(block, layout)
    line_end = not block.ends_inside
    try:
        tokens, starts = _with_starts(cut, tokenizer, line_end)
    except DataError:
        raise tokenizer.unknown_error(block.text, str(block.path), block.line) from None
    counts = np.array(tokenizer.count(cut.text, line_end=line_end), np.int64)
    return _Encoded(
        TokenisedBlock(tokens, starts, counts, cut.skipped, block.consumed), block.path, cut.open_start, cut.open_end
    )


def _cut(block: Block, layout: Layout) -> _Cut:
    if layout in ("stream", "files"):
        drop = layout == "files" and block.line == 1 and not block.starts_inside and not block.text.strip()
        return _Cut("" if drop else block.text, [], True, True, int(drop))
    lines = _LINE.findall(block.text)
    # A piece of a line never counts as blank, because the rest of the line is in another block.
    blank = [line.isspace() for line in lines]
    blank[0] &= not block.starts_inside
    blank[-1] &= not block.ends_inside
    kept = [line for line, dropped in zip(lines, blank, strict=True) if not dropped]
    if layout == "lines":
        starts = list(range(len(kept)))
        return _Cut("".join(kept), starts, block.starts_inside, block.ends_inside, sum(blank))
    sizes = [len(list(run)) for dropped, run in groupby(blank) if not dropped]
    starts = list(accumulate(sizes[:-1], initial=0)) if sizes else []
    return _Cut("".join(kept), starts, not blank[0], not blank[-1], 0)


def _with_starts(cut: _Cut, tokenizer: Tokenizer, line_end: bool) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The tokens of the kept text, and the positions in them of the lines that start something."""
    tokens = tokenizer.encode(cut.text, line_end=line_end)
    if not cut.lines:
        return tokens, np.empty(0, np.int64)
    ends = np.flatnonzero(tokens == tokenizer.newline_id)
    added = tokenizer.eos_id is not None and line_end and not cut.text.endswith("\n")
    if len(ends) == cut.text.count("\n") + added:
        return tokens, np.concatenate([[0], ends + 1])[cut.lines].astype(np.int64)
    # Lines and newline symbols do not correspond (the text contains `<eos>`), so each start is found separately.
    lines = _LINE.findall(cut.text)
    bounds = zip(cut.lines, [*cut.lines[1:], len(lines)], strict=True)
    parts = [tokenizer.encode("".join(lines[a:b]), line_end=line_end) for a, b in bounds]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])], dtype=np.int64)


def _joined(encoded: Iterable[_Encoded], layout: Layout) -> Generator[TokenisedBlock]:
    """The parts, without the starts of lines that continue the previous block."""
    last: Path | None = None
    open_end = False
    for part, path, open_start, opens in encoded:
        starts = part.starts
        if layout in ("stream", "files"):
            fresh = len(part.tokens) > 0 and (last is None or (layout == "files" and path != last))
            starts = np.zeros(int(fresh), np.int64)
        elif open_start and open_end and path == last:
            starts = starts[1:]
        if len(part.tokens):
            last = path
        open_end = opens
        yield part._replace(starts=starts)


def _tokenised_here(blocks: Iterator[Block], tokenizer: Tokenizer, layout: Layout, _: int) -> Iterator[_Encoded]:
    for block in blocks:
        yield _encode(block, tokenizer, layout)


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer_file: Path) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are parallel already
    _worker_tokenizer = Tokenizer.from_json(tokenizer_file.read_text("utf-8"))


def _encode_in_worker(block: Block, layout: Layout) -> _Encoded:
    return _encode(block, _worker_tokenizer, layout)


def _tokenised_by_workers(
    blocks: Iterator[Block], tokenizer: Tokenizer, layout: Layout, workers: int
) -> Iterator[_Encoded]:
    waiting: deque[Future[_Encoded]] = deque()
    try:
        with TemporaryDirectory() as folder:
            # A file: what fills the pipe to a process that dies at its start would be written forever.
            file = Path(folder, "tokenizer.json")
            file.write_bytes(tokenizer.to_bytes())
            with process_pool(workers, _start_worker, file) as pool:
                for block in blocks:
                    waiting.append(pool.submit(_encode_in_worker, block, layout))
                    if len(waiting) >= workers * _IN_FLIGHT:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that tokenises text died: memory may have run out, or a script starts work outside "
            '`if __name__ == "__main__":`; mend that, or ask for workers=1'
        ) from error

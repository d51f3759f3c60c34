"""Learning word vectors in one compiled pass over a text: `native/word_vectors.cpp`."""

from __future__ import annotations

import ctypes
import struct
from typing import Annotated, NamedTuple, TypeAlias

import torch
from torch import Tensor

from everstep.native.c_tables import BytesOut, Count, Entry, Integers, NumbersOut, int64_array
from everstep.native.kernels import kernels, loops
from everstep.networks.word_tables import WordTables

_Words: TypeAlias = Annotated[Entry, "const int32_t*"]
_Thresholds: TypeAlias = Annotated[Entry, "const uint32_t*"]
_Codes: TypeAlias = Annotated[Entry, "const uint8_t*"]
_Real: TypeAlias = Annotated[Entry, "double"]
_Sums: TypeAlias = Annotated[Entry, "double*"]


class WordVectorCall(NamedTuple):
    """What the compiled loop reads.

    Attributes:
        tokens, first, last: word ids, and the range of them that is read.
        end: the id that ends a sentence.
        words, size: V, and the numbers of a vector.
        vectors, outputs: (rows, size) and (V, size).
        part_starts, parts: the rows of each word's parts, or null: row w alone.
        bag: 1: continuous bag of words; 0: skip-gram.
        window, negatives: of `WordTables`.
        most: the most outputs that one target meets.
        keep, alias_below, alias: of `WordTables`.
        path_starts, path_nodes, path_codes: of `WordTables`, or null.
        rate, seed: the learning rate, and what the random numbers follow from.
        memory, memory_stride: working memory, and its bytes for each thread.
        sums: (threads, 8): the loss, and the number of targets.
    """

    tokens: _Words
    first: Count
    last: Count
    end: Count
    words: Count
    size: Count
    vectors: NumbersOut
    outputs: NumbersOut
    part_starts: Integers
    parts: _Words
    bag: Count
    window: Count
    negatives: Count
    most: Count
    keep: _Thresholds
    alias_below: _Thresholds
    alias: _Words
    path_starts: Integers
    path_nodes: _Words
    path_codes: _Codes
    rate: _Real
    seed: Count
    memory: BytesOut
    memory_stride: Count
    sums: _Sums


class Met(NamedTuple):
    """What a pass over a piece of text met: the loss in nats, summed, and the number of targets."""

    nats: float
    targets: int


def _library() -> ctypes.CDLL | None:
    return loops("word_vectors", WordVectorCall, ("es_word_vectors",), "word vectors learn word by word, very slowly")


def available() -> bool:
    """Whether there is a compiler."""
    return _library() is not None


def learn(
    vectors: Tensor, outputs: Tensor, tables: WordTables, tokens: Tensor, bag: bool, rate: float, seed: int
) -> Met:
    """Move `vectors` and `outputs` (float32, on the CPU) by the words `tokens` (N,) int32, on PyTorch's threads."""
    library = _library()
    assert library is not None
    threads = max(1, min(torch.get_num_threads(), len(tokens) // 1000))
    size, most = vectors.shape[1], tables.most
    stride = (4 * (3 * (size + 16) + 2 * (most + 16)) + 8 * most + 4096) // 64 * 64
    memory = torch.empty(threads * stride, dtype=torch.uint8, device="cpu")
    sums = torch.zeros(threads, 8, dtype=torch.float64, device="cpu")
    arrays = {name: 0 if array is None else array.ctypes.data for name, array in tables.arrays().items()}
    table = WordVectorCall(
        tokens=tokens.data_ptr(),
        first=0,
        last=len(tokens),
        end=tables.end,
        words=len(outputs),
        size=size,
        vectors=vectors.data_ptr(),
        outputs=outputs.data_ptr(),
        bag=bag,
        window=tables.window,
        negatives=tables.negatives,
        most=-(-most // 2) * 2,  # so that what follows lies at a multiple of eight bytes
        rate=struct.unpack("q", struct.pack("d", rate))[0],
        seed=seed,
        memory=memory.data_ptr(),
        memory_stride=stride,
        sums=sums.data_ptr(),
        **arrays,
    )
    kernels(torch.float32).parallel(library.es_word_vectors, int64_array(table), threads)
    nats, targets = sums[:, :2].sum(0).tolist()
    return Met(nats, int(targets))

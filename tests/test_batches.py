"""Lanes and buckets against brute force: every target once, in order, with the right input before it."""

from __future__ import annotations

import errno
import tempfile
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data import length_groups
from everstep.data.bucket_order import BucketOrder
from everstep.data.buckets import Buckets
from everstep.data.lanes import Lanes
from everstep.data.text.corpus import Corpus
from everstep.errors import ConfigError, DataError

BEGIN = 999


def corpus_of(lengths: list[int]) -> Corpus:
    """Documents of the given lengths whose tokens are 1, 2, 3 … throughout."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return Corpus(np.arange(1, sum(lengths) + 1, dtype=np.uint16), starts)


def walk(lanes: Lanes, epoch: int) -> list[list[tuple[int, int, bool]]]:
    """(input, target, reset) of every step of each lane, put together from the batches as a learner would."""
    rows: list[list[tuple[int, int, bool]]] = [[] for _ in range(lanes.batch_size)]
    start = 0
    for index in range(len(lanes)):
        batch = lanes.batch(epoch, index)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        steps = batch.inputs.shape[1]
        lengths = [steps] * lanes.batch_size if batch.lengths is None else batch.lengths.tolist()
        resets = torch.zeros(batch.inputs.shape, dtype=torch.bool) if batch.resets is None else batch.resets
        for row, length in enumerate(lengths):
            seen = list(zip(batch.inputs[row].tolist(), batch.targets[row].tolist(), resets[row].tolist(), strict=True))
            assert all(step == (0, 0, False) for step in seen[length:])
            assert seen[: batch.context][:length] == rows[row][start : start + batch.context][:length]
            assert len(rows[row]) == start + batch.context or length <= batch.context
            rows[row] += seen[batch.context : length]
        assert batch.count == sum(max(length - batch.context, 0) for length in lengths)
        start += batch.advance
    return rows


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(2, 80),
    rows=st.integers(1, 6),
    k1=st.integers(1, 9),
    more=st.integers(-3, 12),
    begin=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_a_stream_gives_every_target_once_in_order(size, rows, k1, more, begin, epoch):
    corpus = corpus_of([size])
    if size - (not begin) < rows:
        with pytest.raises(DataError, match="batch_size"):
            Lanes(corpus, rows, k1, begin_id=BEGIN if begin else None)
        return
    lanes = Lanes(corpus, rows, k1, max(k1 + more, 1), begin_id=BEGIN if begin else None)
    found = walk(lanes, epoch)
    tokens = ([BEGIN] if begin else []) + corpus.tokens.tolist()
    pairs = [(x, y) for row in found for x, y, _ in row]
    assert pairs == list(pairwise(tokens))
    assert {len(row) for row in found} <= {len(pairs) // rows, len(pairs) // rows + 1}
    for row in found:
        assert [reset for _, _, reset in row] == [True] + [False] * (len(row) - 1)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=12),
    rows=st.integers(1, 4),
    k1=st.integers(1, 7),
    more=st.integers(0, 9),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_documents_are_whole_and_start_from_begin(lengths, rows, k1, more, shuffle, epoch):
    corpus = corpus_of(lengths)
    if sum(lengths) < rows:
        return
    lanes = Lanes(corpus, rows, k1, k1 + more, begin_id=BEGIN, seed=3, shuffle=shuffle)
    found = walk(lanes, epoch)
    starts = corpus.starts.tolist()
    documents = [corpus.tokens[a:b].tolist() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    steps = [step for row in found for step in row]
    seen: list[list[int]] = []
    for x, y, _ in steps:
        if x == BEGIN:
            seen.append([])
        else:
            assert x == seen[-1][-1]
        seen[-1].append(y)
    assert sorted(seen) == documents
    if not shuffle:
        assert seen == documents
    for row in found:
        assert [reset for _, _, reset in row] == [i == 0 or x == BEGIN for i, (x, _, _) in enumerate(row)]


def test_documents_come_in_a_new_order_each_epoch_that_depends_on_the_seed_alone():
    corpus = corpus_of([3] * 50)

    def order(seed: int, epoch: int) -> list[int]:
        return Lanes(corpus, 2, 75, begin_id=BEGIN, seed=seed).batch(epoch, 0).targets.flatten().tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_batches_are_random_access():
    corpus = corpus_of([4, 9, 2, 7])
    lanes = Lanes(corpus, 2, 3, begin_id=BEGIN)
    there = [lanes.batch(1, i).targets.tolist() for i in range(len(lanes))]
    lanes.batch(0, 0)
    assert [lanes.batch(1, i).targets.tolist() for i in reversed(range(len(lanes)))] == there[::-1]
    with pytest.raises(IndexError):
        lanes.batch(0, len(lanes))


def test_context_is_what_k2_is_longer_than_k1():
    lanes = Lanes(corpus_of([21]), 1, 4, 10)
    shapes = [(b.inputs.shape[1], b.context, b.advance) for b in (lanes.batch(0, i) for i in range(len(lanes)))]
    assert shapes == [(4, 0, 0), (8, 4, 2), (10, 6, 4), (10, 6, 4), (10, 6, 4)]
    assert [lanes.batch(0, i).resets is not None for i in range(5)] == [True, True, False, False, False]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"k1": 0}, {"k2": -1}, {"seed": -1}])
def test_impossible_sizes_of_lanes_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Lanes(corpus_of([30]), **{"batch_size": 2, "k1": 3, **bad})


def test_documents_need_a_begin_symbol():
    with pytest.raises(DataError, match=r"data\.eos"):
        Lanes(corpus_of([3, 3]), 1, 2)
    with pytest.raises(DataError, match=r"data\.eos"):
        Buckets(corpus_of([3, 3]), 1, begin_id=None)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=40),
    rows=st.integers(1, 6),
    pool=st.integers(1, 4),
    max_tokens=st.none() | st.integers(1, 40),
    shuffle=st.booleans(),
)
def test_buckets_give_every_line_once(lengths, rows, pool, max_tokens, shuffle):
    corpus = corpus_of(lengths)
    buckets = Buckets(corpus, rows, begin_id=BEGIN, pool=pool, max_tokens=max_tokens, shuffle=shuffle, seed=7)
    starts = corpus.starts.tolist()
    lines = [corpus.tokens[a:b].tolist() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    for epoch in (0, 1):
        seen = []
        for index in range(len(buckets)):
            batch = buckets.batch(epoch, index)
            assert batch.resets is None
            assert (batch.context, batch.advance) == (0, 0)
            assert batch.lengths is not None
            assert batch.inputs.shape == batch.targets.shape == (len(batch.lengths), int(batch.lengths.max()))
            assert len(batch.lengths) <= rows
            if max_tokens is not None:
                assert len(batch.lengths) == 1 or batch.inputs.numel() <= max_tokens
            for x, y, n in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.lengths.tolist(), strict=True):
                assert x[:n] == [BEGIN, *y[: n - 1]]
                assert not any(x[n:])
                assert not any(y[n:])
                seen.append(y[:n])
        assert sorted(seen) == lines


def test_buckets_hold_lines_of_like_length_in_a_new_order_each_epoch():
    lengths = np.random.default_rng(0).integers(1, 60, 400).tolist()
    buckets = Buckets(corpus_of(lengths), 8, begin_id=BEGIN, pool=10)
    batches = [buckets.batch(0, i) for i in range(len(buckets))]
    padding = sum(b.inputs.numel() - b.count for b in batches) / sum(lengths)
    assert padding < 0.15  # without sorting it is about 0.8
    assert batches[0].targets.tolist() != buckets.batch(1, 0).targets.tolist()
    again = Buckets(corpus_of(lengths), 8, begin_id=BEGIN, pool=10)
    assert again.batch(0, 3).targets.tolist() == batches[3].targets.tolist()


def test_unshuffled_buckets_are_the_same_every_epoch():
    buckets = Buckets(corpus_of([3, 1, 2, 5, 4]), 2, begin_id=BEGIN, shuffle=False, pool=1)
    first = [buckets.batch(0, i).targets.tolist() for i in range(3)]
    assert first == [buckets.batch(4, i).targets.tolist() for i in range(3)]
    assert [row for rows in first for row in rows] == [
        [4, 0, 0],
        [1, 2, 3],
        [5, 6, 0, 0, 0][:5],
        [7, 8, 9, 10, 11],
        [12, 13, 14, 15],
    ]


@pytest.mark.parametrize(("even", "least", "most"), [(True, 1, 1.1), (False, 8, 100)])
def test_targets_weigh_the_same_in_even_batches(even, least, most):
    """The weight of a target is 1 / the targets of its batch; compared by the length of its sequence."""
    lengths = np.random.default_rng(0).integers(1, 31, 4000)
    order = BucketOrder(lengths, 16, even=even)
    weights = np.zeros(31)
    batches = [lengths[order.rows(0, index)] for index in range(len(order))]
    for batch in batches:
        np.add.at(weights, batch, batch / batch.sum())
    assert sum(map(len, batches)) == 4000
    assert len(batches) == 4000 / 16
    share = weights[1:] / np.bincount(lengths, lengths)[1:]
    assert least <= share.max() / share.min() < most


def sorted_at_once(lengths, ties, size, epoch, *, seed, shuffle, pool, max_tokens, even):
    """The batches of `BucketOrder`, with all sequences in memory and sorted by their numbers."""
    number, batches = len(lengths), -(-len(lengths) // size)
    ascending = np.sort(lengths)
    ends = np.cumsum(ascending)
    bounds = np.append(np.arange(0, number, size), number)
    if even:
        alone = np.searchsorted(ascending, ends[-1] / batches, side="right")
        full = np.searchsorted(ends, np.arange(1, batches) / batches * ends[-1]) + 1
        bounds = np.unique([0, alone, *full, number])
    elif max_tokens:
        bounds = [0]
        while bounds[-1] < number:
            ahead = ascending[bounds[-1] : bounds[-1] + size] * np.arange(1, size + 1)[: number - bounds[-1]]
            bounds.append(bounds[-1] + max(1, int((ahead <= max_tokens).sum())))
    order, drawn = np.arange(number), np.arange(len(bounds) - 1)
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    if shuffle:
        random.shuffle(order)
        random.shuffle(drawn)
    step = number if even or max_tokens else pool * size
    pools = [order[start : start + step] for start in range(0, number, step)]
    order = np.concatenate([some[np.lexsort([ties[some], lengths[some]])] for some in pools])
    return [order[bounds[place] : bounds[place + 1]].tolist() for place in drawn]


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60),
    size=st.integers(1, 7),
    pool=st.integers(1, 4),
    max_tokens=st.none() | st.integers(1, 40),
    flags=st.tuples(st.booleans(), st.booleans()),
    block=st.integers(1, 70),
)
def test_an_order_in_files_is_that_of_a_sort_in_memory(sizes, size, pool, max_tokens, flags, block):
    lengths, ties = np.array(sizes).T
    options = {"seed": 5, "shuffle": flags[0], "pool": pool, "max_tokens": max_tokens, "even": flags[1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_groups, "_BLOCK", block)
        order = BucketOrder(lengths.astype(np.int32), size, ties=ties, **options)
        for epoch in (0, 3):
            found = [order.rows(epoch, index).tolist() for index in range(len(order))]
            assert found == sorted_at_once(lengths, ties, size, epoch, **options)


def test_even_batches_of_many_sequences_end_where_the_sum_of_their_lengths_says():
    lengths = np.random.default_rng(3).integers(1, 90, 70_001)
    options = {"seed": 1, "shuffle": True, "pool": 1, "max_tokens": None, "even": True}
    order = BucketOrder(lengths, 64, **options)
    found = [order.rows(0, index).tolist() for index in range(len(order))]
    assert found == sorted_at_once(lengths, np.zeros_like(lengths), 64, 0, **options)


def test_memory_of_an_order_does_not_grow_with_the_sequences():
    """In memory, an order of 600,000 sequences would take 20 MB and more."""
    lengths = np.random.default_rng(0).integers(1, 30, 600_000)
    tracemalloc.start()
    try:
        order = BucketOrder(lengths, 64, ties=lengths[::-1], even=True)
        order.rows(0, 0)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_order_that_cannot_be_written_is_said(monkeypatch):
    def full(**given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        BucketOrder(np.ones(100_000, np.int64), 10)


def test_even_batches_of_one_sequence_or_of_empty_ones():
    given = [9], [0], [0, 0, 0], [1, 1, 1, 90]
    orders = [BucketOrder(np.array(lengths), 2, even=True, shuffle=False) for lengths in given]
    rows = [[order.rows(0, index).tolist() for index in range(len(order))] for order in orders]
    assert rows == [[[0]], [[0]], [[0], [1, 2]], [[0, 1, 2], [3]]]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"pool": 0}, {"max_tokens": 0}, {"seed": -1}])
def test_impossible_sizes_of_buckets_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Buckets(corpus_of([30]), **{"batch_size": 2, "begin_id": 0, **bad})


def test_random_lengths_give_every_target_once_with_the_state_carried() -> None:
    corpus = Corpus(np.arange(4001), np.array([0]))
    for k2 in (None, 90):
        lanes = Lanes(corpus, 4, 70, k2, seed=3, begin_id=0, random_k1=True)
        plain = Lanes(corpus, 4, 70, seed=3, begin_id=0)
        lengths = {}
        for epoch in (0, 1):
            batches = [lanes.batch(epoch, index) for index in range(len(lanes))]
            assert len(batches) == len(plain)
            seen = [batch.targets[:, batch.context :] for batch in batches]
            valid = [torch.full((4,), 10**6) if b.lengths is None else b.lengths - b.context for b in batches]
            rows = [
                torch.cat([one[row, : int(n[row])] for one, n in zip(seen, valid, strict=True)]) for row in range(4)
            ]
            assert torch.cat(rows).tolist() == list(range(4001))
            for batch, then in pairwise(batches):
                assert batch.advance + then.context == batch.inputs.shape[1]
            lengths[epoch] = [one.shape[1] for one in seen]
        assert lengths[0] != lengths[1]
        again = [lanes.batch(0, index) for index in range(len(lanes))]
        assert [batch.targets.shape[1] - batch.context for batch in again] == lengths[0]
        assert min(lengths[0]) > 30
        assert max(lengths[0]) < 110

"""The law of the compiled engine for cells that nobody has written: fused = reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cells import differences, recipe, refused

import everstep as es
from everstep.native import toolchain

pytestmark = [
    pytest.mark.sanitize,
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine"),
]
RANDOM, SINGLE = 32, 6
"""Random cells that the suite compiles in float64, and those of them that it also compiles in float32."""
_made: dict[int, es.Cell | None] = {}


def random_cell(seed: int) -> es.Cell | None:
    """The cell of this number, compiled once for all examples; None if the engine refuses it."""
    if seed not in _made:
        cell = recipe(seed).cell()
        _made[seed] = None if refused(cell) else cell
    return _made[seed]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, RANDOM - 1), batch=st.integers(1, 6), time=st.integers(0, 9), how=st.integers(0, 10**6))
def test_random_cells_equal_the_reference(seed: int, batch: int, time: int, how: int) -> None:
    cell = random_cell(seed)
    if cell is not None:
        assert not differences(cell, torch.float64, how, batch, time), recipe(seed).source()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, SINGLE - 1), batch=st.integers(1, 6), time=st.integers(1, 9), how=st.integers(0, 10**6))
def test_random_cells_in_float32(seed: int, batch: int, time: int, how: int) -> None:
    cell = random_cell(seed)
    if cell is not None:
        assert not differences(cell, torch.float32, how, batch, time), recipe(seed).source()


def test_few_random_cells_are_refused() -> None:
    assert sum(random_cell(seed) is None for seed in range(RANDOM)) < 0.2 * RANDOM

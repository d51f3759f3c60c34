"""Steps that write something besides their results run as the plain loop runs them, and say so by line."""

from __future__ import annotations

import array
import copy
import random
import re
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.fused.runtime.cell_cache import EFFECTS
from everstep.native import toolchain
from everstep.state import State
from everstep.tracing.side_effects import Watch
from tests.laws import refused

COUNT = 0
KEPT: list[Any] = []


class Writing(es.Cell):
    """h_t = f(W x_t + h_{t-1}) · a number that `write` gives for this step."""

    shared = 0

    def __init__(self, write: Callable[[Any, Tensor], float]):
        super().__init__(3)
        self.write, self.linear = write, nn.Linear(3, 3, dtype=torch.float64)
        self.t, self.kept, self.entries, self.nested = 0, [], {}, {"a": [0]}
        self.hidden: Tensor | None = None
        self.options, self.recent, self.seen = SimpleNamespace(count=0), deque([0], 2), set()
        self.bytes, self.array, self.numbers = bytearray(1), array.array("d", [0.0]), np.zeros(1)
        self.random, self.drawn = random.Random(0), np.random.default_rng(0)
        self.helpers = [nn.Linear(1, 1)]
        self.more = iter(range(1, 1000))
        self.register_buffer("offset", torch.zeros(3, dtype=torch.float64))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = torch.tanh(self.linear(x) + state)
        h = h * self.write(self, h)
        return h, h


def a_number(cell: Any, h: Tensor) -> float:
    cell.t += 1
    return 0.0 if cell.t % 4 == 0 else 1.0


def the_state(cell: Any, h: Tensor) -> float:
    cell.last = h
    return 1.0


def what_is_begun_afresh(cell: Any, h: Tensor) -> float:
    if cell.hidden is None or len(cell.hidden) != len(h):
        cell.hidden = torch.zeros_like(h)
    return 1.0


def a_list(cell: Any, h: Tensor) -> float:
    cell.kept.append(h)
    return float(len(cell.kept) % 4)


def an_entry(cell: Any, h: Tensor) -> float:
    cell.entries["n"] = cell.entries.get("n", 0) + 1
    return float(cell.entries["n"] % 4)


def a_nested_list(cell: Any, h: Tensor) -> float:
    cell.nested["a"][0] += 1
    return float(cell.nested["a"][0] % 4)


def an_object(cell: Any, h: Tensor) -> float:
    cell.options.count += 1
    return float(cell.options.count % 4)


def a_deque(cell: Any, h: Tensor) -> float:
    cell.recent.append(cell.recent[-1] + 1)
    return float(cell.recent[-1] % 4)


def a_set(cell: Any, h: Tensor) -> float:
    cell.seen.add(len(cell.seen))
    return float(len(cell.seen) % 4)


def some_bytes(cell: Any, h: Tensor) -> float:
    cell.bytes[0] += 1
    return float(cell.bytes[0] % 4)


def an_array(cell: Any, h: Tensor) -> float:
    cell.array[0] += 1
    return float(cell.array[0] % 4)


def an_array_of_numpy(cell: Any, h: Tensor) -> float:
    cell.numbers += 1
    return float(cell.numbers[0] % 4)


def a_generator(cell: Any, h: Tensor) -> float:
    return float(cell.random.random())


def a_module_in_a_list(cell: Any, h: Tensor) -> float:
    cell.helpers[0].count = getattr(cell.helpers[0], "count", 0) + 1
    return float(cell.helpers[0].count % 4)


def a_buffer(cell: Any, h: Tensor) -> float:
    cell.offset = cell.offset + 1
    return 1.0


def a_buffer_in_place(cell: Any, h: Tensor) -> float:
    cell.offset.add_(1)
    return 1.0


def the_mode(cell: Any, h: Tensor) -> float:
    cell.linear.training = not cell.linear.training
    return 1.0 if cell.linear.training else 2.0


def the_class(cell: Any, h: Tensor) -> float:
    type(cell).shared += 1
    return float(type(cell).shared % 4)


def a_global(cell: Any, h: Tensor) -> float:
    global COUNT
    COUNT += 1
    return float(COUNT % 4)


def a_global_list(cell: Any, h: Tensor) -> float:
    KEPT.append(1)
    return float(len(KEPT) % 4)


def through_another(cell: Any, h: Tensor) -> float:
    return a_global(cell, h)


def around() -> Callable[[Any, Tensor], float]:
    count = 0

    def a_closure(cell: Any, h: Tensor) -> float:
        nonlocal count
        count += 1
        return float(count % 4)

    return a_closure


WRITES = [
    *(a_number, the_state, what_is_begun_afresh, a_list, an_entry, a_nested_list, an_object, a_deque, a_set),
    *(some_bytes, an_array, an_array_of_numpy, a_generator, a_module_in_a_list, a_buffer, a_buffer_in_place),
    *(the_mode, the_class, a_global, a_global_list, through_another),
]


def reset() -> None:
    global COUNT
    COUNT, Writing.shared = 0, 0
    KEPT.clear()


def first_line(function: Callable[..., Any]) -> int:
    return function.__code__.co_firstlineno


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_a_step_writes_is_written_at_every_step(write: Callable[[Any, Tensor], float]) -> None:
    cell = Writing(write)
    again, xs = copy.deepcopy(cell), torch.randn(2, 9, 3, dtype=torch.float64)
    reset()
    wanted = [es.scan(again, xs[:, t : t + 3], backend="reference")[0] for t in (0, 3, 6)]
    reset()
    found = [es.scan(cell, xs[:, t : t + 3])[0] for t in (0, 3, 6)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    reset()
    reason = refused(fused, Writing(write), xs, None, None)
    assert isinstance(reason, fused.Effect)
    line = re.search(rf"\({re.escape(__file__)}:(\d+)\)$", reason)
    inner = a_global if write is through_another else write
    assert line is not None
    assert first_line(inner) <= int(line[1]) <= first_line(inner) + 4


def test_a_variable_around_a_step_is_written_at_every_step() -> None:
    xs = torch.randn(2, 9, 3, dtype=torch.float64)
    cell = Writing(around())
    other = Writing(around())
    other.load_state_dict(cell.state_dict())
    torch.testing.assert_close(cell(xs)[0], es.scan(other, xs, backend="reference")[0], rtol=0, atol=0)
    assert "writes 'count' around it" in (refused(fused, Writing(around()), xs, None, None) or "")


def test_what_an_iterator_gives_is_not_taken_for_constant() -> None:
    cell = Writing(lambda cell, h: float(next(cell.more) % 4))
    assert "changes what 'more' holds" in (refused(fused, cell, torch.zeros(2, 3, 3, dtype=torch.float64), None, None))


def test_tracing_leaves_nothing_behind() -> None:
    for write in WRITES:
        cell = Writing(write)
        before = repr({k: v for k, v in vars(cell).items() if k not in ("more", "drawn", "_buffers")})
        reset()
        refused(fused, cell, torch.zeros(2, 3, 3, dtype=torch.float64), None, None)
        after = repr({k: v for k, v in vars(cell).items() if k not in ("more", "drawn", "_buffers", "_everstep_cache")})
        assert (after, COUNT, KEPT, Writing.shared) == (before, 0, [], 0), write.__name__


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
def test_what_is_made_once_is_compiled_from_then_on() -> None:
    def lazily(cell: Any, h: Tensor) -> float:
        if "n" not in cell.entries:
            cell.entries["n"] = 0.5
        return float(cell.entries["n"])

    cell, xs = Writing(lazily), torch.randn(2, 4, 3, dtype=torch.float64)
    assert isinstance(refused(fused, cell, xs, None, None), fused.Effect)
    cell(xs)
    assert refused(fused, cell, xs, None, None) is None
    torch.testing.assert_close(cell(xs)[0], es.scan(cell, xs, backend="reference")[0])


def test_a_step_that_always_writes_is_not_traced_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, trace = [], fused.trace
    monkeypatch.setattr(fused, "trace", lambda *args, **kwargs: traced.append(1) or trace(*args, **kwargs))
    cell, xs = Writing(a_number), torch.randn(2, 4, 3, dtype=torch.float64)
    for _ in range(3 * EFFECTS):
        cell(xs)
    assert len(traced) == EFFECTS
    assert cell.t == 3 * EFFECTS * 4


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
def test_what_pytorch_makes_anew_at_every_call_is_no_effect() -> None:
    cell = Writing(lambda cell, h: 1.0)
    prune.random_unstructured(cell.linear, "weight", 0.5)
    xs = torch.randn(2, 4, 3, dtype=torch.float64)
    assert refused(fused, cell, xs, None, None) is None
    torch.testing.assert_close(cell(xs)[0], es.scan(cell, xs, backend="reference")[0])


class Counting(es.Affine):
    """Coefficients that count the steps."""

    def __init__(self) -> None:
        super().__init__(3)
        self.t = 0

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.t += 1
        return torch.full_like(x, 0.5), x * self.t


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_coefficients_that_write_are_not_taken_at_once(dtype: torch.dtype) -> None:
    xs = torch.randn(2, 5, 3).to(dtype)
    found, wanted = Counting()(xs), es.scan(Counting(), xs, backend="reference")
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"'parallel' cannot run Counting: its step writes 't' on its module"):
        es.scan(Counting(), xs, backend="parallel")


def test_a_stream_of_a_step_that_writes_is_the_loop() -> None:
    cell = Writing(a_number)
    again, xs = copy.deepcopy(cell), torch.randn(2, 9, 3, dtype=torch.float64)
    stream = es.Stream(cell, 2)
    assert "writes 't'" in (stream.reason or "")
    found = torch.stack([stream(x) for x in xs.unbind(1)], 1)
    torch.testing.assert_close(found, es.scan(again, xs, backend="reference")[0])


def test_a_watch_sees_nothing_where_nothing_is_written() -> None:
    cell = es.Stack(es.LSTM(3, 5), es.Zoneout(es.LayerNormGRU(5, 4), 0.1))
    watch = Watch(cell)
    cell.eval().train()
    assert watch.undo() is None

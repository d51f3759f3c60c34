"""Entries of a state that is a dict belong together by key, in whatever order a step or a caller writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.state import check_nest, leaves, like_nest, map_state, unflatten
from tests.laws import D, H

F64 = torch.float64


class Pair(NamedTuple):
    fast: Tensor
    slow: Tensor


class Two(es.Cell):
    """Two leaves, of which `slow` has `wide` features; how they are nested is a subclass's."""

    def __init__(self, wide: int = H) -> None:
        super().__init__(D, H)
        self.wide = wide
        torch.manual_seed(0)
        self.enter, self.again = nn.Linear(D, H, dtype=F64), nn.Linear(wide, H, dtype=F64)
        self.keep = nn.Linear(H, wide, dtype=F64)

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return self.pack(like.new_zeros(batch, H), like.new_ones(batch, self.wide))

    def pack(self, fast: Tensor, slow: Tensor) -> Any:
        return Pair(fast, slow)

    def unpack(self, state: Any) -> tuple[Tensor, Tensor]:
        return state[0], state[1]

    def give(self, fast: Tensor, slow: Tensor) -> Any:
        return self.pack(fast, slow)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        fast, slow = self.unpack(state)
        fast = torch.tanh(self.enter(x) + self.again(slow) - 0.5 * fast)
        slow = 0.9 * slow + self.keep(fast)
        return fast, self.give(fast, slow)


class Keyed(Two):
    def pack(self, fast: Tensor, slow: Tensor) -> Any:
        return {"fast": fast, "slow": slow}

    def unpack(self, state: Any) -> tuple[Tensor, Tensor]:
        return state["fast"], state["slow"]


class Turned(Keyed):
    """Gives the keys in another order than it starts with."""

    def give(self, fast: Tensor, slow: Tensor) -> Any:
        return {"slow": slow, "fast": fast}


class Backward(Turned):
    """Starts with the other order."""

    def pack(self, fast: Tensor, slow: Tensor) -> Any:
        return {"slow": slow, "fast": fast}

    def give(self, fast: Tensor, slow: Tensor) -> Any:
        return {"fast": fast, "slow": slow}


class Listed(Two):
    def pack(self, fast: Tensor, slow: Tensor) -> Any:
        return [fast, slow]

    def give(self, fast: Tensor, slow: Tensor) -> Any:
        return (fast, slow)


class Deep(Two):
    """Dicts in lists in dicts, numbers among the keys."""

    def pack(self, fast: Tensor, slow: Tensor) -> Any:
        return {"b": [{2: fast}], 1: (slow,)}

    def unpack(self, state: Any) -> tuple[Tensor, Tensor]:
        return state["b"][0][2], state[1][0]

    def give(self, fast: Tensor, slow: Tensor) -> Any:
        return {1: [slow], "b": ({2: fast},)}


class Changed(Keyed):
    """Puts the new leaves into the dict that it was given."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        fast, new = super().step(x, state)
        state["slow"] = new["slow"]
        state["fast"] = fast
        return fast, state


KINDS = [Keyed, Turned, Backward, Listed, Deep, Changed]
RUNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "auto": lambda cell, xs: cell(xs, lengths=torch.tensor([5, 3])),
    "reference": lambda cell, xs: cell(xs, lengths=torch.tensor([5, 3]), backend="reference"),
    "fused": lambda cell, xs: cell(xs, lengths=torch.tensor([5, 3]), backend="fused"),
    "resets": lambda cell, xs: cell(xs, resets=torch.rand(2, 5, generator=torch.manual_seed(3)) < 0.5),
    "zoneout": lambda cell, xs: es.Zoneout(cell, 0.4).eval()(xs),
    "zoneout, training": lambda cell, xs: es.Zoneout(cell, 0.4)(xs),
    "stack": lambda cell, xs: es.Stack(cell, es.Residual(es.Identity(H)))(xs),
    "skip": lambda cell, xs: es.TimeSkip(cell, 2)(xs),
    "checkpointed": lambda cell, xs: es.Checkpointed(cell, 2)(xs),
    "online": lambda cell, xs: es.Online(cell)(xs),
    "uoro": lambda cell, xs: es.Online(cell, "uoro")(xs),
    "conditioned": lambda cell, xs: es.Conditioned(cell, 2, dtype=F64)(xs),
    "backward": lambda cell, xs: es.Bidirectional(cell, cell)(xs),
}


def outputs(cell: es.Cell, run: str) -> list[Tensor]:
    """Outputs, and gradients of all parameters and of x."""
    xs = torch.randn(2, 5, D, dtype=F64, generator=torch.manual_seed(1), requires_grad=True)
    torch.manual_seed(2)
    ys, _ = RUNS[run](cell, xs)
    wanted = [xs, *cell.parameters()]
    return [ys, *torch.autograd.grad(ys.square().sum(), wanted, allow_unused=True)]


@cache
def wanted(run: str, wide: int) -> list[Tensor]:
    """The outputs of the plainest nest, which all others share."""
    return outputs(Two(wide), run)


@pytest.mark.parametrize("wide", [H, 3])
@pytest.mark.parametrize(
    ("kind", "run"),
    # random numbers come leaf by leaf, in the order of the keys, which is another in Deep
    [(kind, run) for kind in KINDS for run in RUNS if kind is not Deep or run not in ("zoneout, training", "uoro")],
)
def test_the_same_step_gives_the_same_however_its_state_is_nested(kind: type[Two], run: str, wide: int) -> None:
    for ours, theirs in zip(outputs(kind(wide), run), wanted(run, wide), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["auto", "reference", "fused"])
def test_a_state_comes_in_any_order_and_comes_back_as_the_cell_has_it(kind: type[Two], backend: str) -> None:
    cell, xs = kind(3), torch.randn(2, 5, D, dtype=F64)
    whole, end = cell(xs, backend=backend)
    first, state = cell(xs[:, :2], backend=backend)
    assert type(state) is type(cell.initial_state(2, xs))
    other = dict(reversed(state.items())) if isinstance(state, dict) else tuple(state)
    before = map_state(torch.clone, other)
    second, final = cell(xs[:, 2:], other, backend=backend)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    for (name, ours), (same, theirs) in zip(leaves(final), leaves(end), strict=True):
        assert name == same
        torch.testing.assert_close(ours, theirs)
    if isinstance(final, dict):
        assert list(final) == list(cell.initial_state(2, xs))
        assert list(other) == list(before)
    for (_, now), (_, then) in zip(leaves(other), leaves(before), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("wide", [H, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_stream_pairs_by_key(kind: type[Two], wide: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = kind(wide).eval(), torch.randn(2, 5, D, dtype=F64)
    if not compiled:
        monkeypatch.setattr("everstep.stream._compile", lambda *_: "no")
    ys, end = cell(xs)
    stream = es.Stream(cell, 2)
    assert stream.compiled == compiled
    got = [stream(x) for x in xs[:, :2].unbind(1)]
    state = stream.state
    stream.reset()
    stream.state = dict(reversed(state.items())) if isinstance(state, dict) else tuple(state)
    got += [stream(x) for x in xs[:, 2:].unbind(1)]
    torch.testing.assert_close(torch.stack(got, 1), ys)
    for (_, ours), (_, theirs) in zip(leaves(stream.state), leaves(end), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_zoneout_names_the_leaves_of_dicts() -> None:
    for kind in (Keyed, Turned, Backward):
        torch.manual_seed(0)
        ys, _ = es.Zoneout(kind(3), {"slow": 0.5}).eval()(torch.ones(2, 5, D, dtype=F64))
        cell = kind(3)
        plain, h = [], cell.initial_state(2, ys)
        for _ in range(5):
            y, new = cell.step(torch.ones(2, D, dtype=F64), h)
            h = {"fast": new["fast"], "slow": 0.5 * h["slow"] + 0.5 * new["slow"]}
            plain.append(y)
        torch.testing.assert_close(ys, torch.stack(plain, 1))


def test_functions_of_nests_pair_by_key() -> None:
    one, two = {"a": torch.zeros(1, 2), "b": torch.ones(1, 3)}, {"b": torch.ones(1, 3), "a": torch.zeros(1, 2)}
    check_nest("here", one, two)
    assert [name for name, _ in leaves(one)] == [name for name, _ in leaves(two)]
    assert list(like_nest(one, two)) == ["b", "a"]
    assert {k: v.shape[1] for k, v in unflatten(two, [leaf for _, leaf in leaves(one)]).items()} == {"a": 2, "b": 3}
    assert map_state(lambda a, b: a + b, [one, (one,)], [two, (two,)])[0]["b"].tolist() == [[2.0] * 3]
    with pytest.raises(ValueError, match=r"here: state leaf 'a' should have shape \(1, 3\), but has \(1, 2\)"):
        check_nest("here", one, {"b": torch.ones(1, 3), "a": torch.zeros(1, 3)})
    with pytest.raises(TypeError, match="here: state should be a list of 2, but is a tuple of 1"):
        check_nest("here", (one["a"],), [one["a"], one["a"]])


class Counting(Two):
    """The second leaf is a whole number, the third float64 whatever x is."""

    def initial_state(self, batch: int, like: Tensor) -> Any:
        count = torch.zeros(batch, 1, dtype=torch.int64)
        return [super().initial_state(batch, like), count, torch.zeros(batch, 1, dtype=F64)]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        pair, count, long = state
        y, new = super().step(x, pair)
        return torch.where(count % 2 == 0, y, -y), [new, count + 1, long + 1 / 3]


def test_leaves_of_other_dtypes_keep_them_under_autocast() -> None:
    cell, xs = Counting().float(), torch.randn(2, 6, D)
    with torch.autocast("cpu", torch.bfloat16):
        whole, (_, count, long) = cell(xs)
        first, between = cell(xs[:, :3])
        second, state = cell(xs[:, 3:], between)
    assert (count.dtype, long.dtype) == (torch.int64, F64)
    assert count.tolist() == [[6], [6]]
    torch.testing.assert_close(long, torch.full((2, 1), 2.0, dtype=F64))
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert [leaf.dtype for _, leaf in leaves(state)] == [torch.float32, torch.float32, torch.int64, F64]

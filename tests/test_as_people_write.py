"""Steps in the styles of many people: `auto` computes what the plain loop of the same step computes, or it says that it
loops.

Each is run twice, with weights that have changed and another number of rows between, against
`for t: y, s = cell.step(x[:, t], s)` of a cell made in the same way.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.backends.protocol import Refusal
from everstep.state import map_state
from tests.laws import D, H

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
MADE: dict[str, Callable[[], es.Cell]] = {}


def style(make: Callable[[], es.Cell]) -> Callable[[], es.Cell]:
    MADE[make.__name__] = make
    return make


class Base(es.Cell):
    """Two linear maps; what a style does besides is in its step."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.ih, self.hh = nn.Linear(D, H), nn.Linear(H, H)
        self.setup()

    def setup(self) -> None:
        """More of it."""

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.ih(x) + self.hh(h))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state)
        return h, h


# state and counts on the module


@style
class StateOnTheModule(Base):
    hidden: Tensor | None = None

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return ()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.hidden is None or len(self.hidden) != len(x):
            self.hidden = torch.zeros(len(x), H)
        self.hidden = self.new(x, self.hidden)
        return self.hidden, ()


@style
class EveryFourth(Base):
    t = 0

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.t += 1
        h = self.new(x, state)
        if self.t % 4 == 0:
            h = h * 0
        return h, h


@style
class Keeping(Base):
    def setup(self) -> None:
        self.kept: list[Tensor] = []

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state)
        self.kept.append(h)
        return h + 0.1 * len(self.kept), h


@style
class LastOne(Base):
    last: Any = None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state)
        y = h if self.last is None or self.last.shape != h.shape else h - self.last
        self.last = h.detach()
        return y, h


@style
class CountingBuffer(Base):
    count: Tensor

    def setup(self) -> None:
        self.register_buffer("count", torch.zeros(()))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.count += 1
        h = self.new(x, state) / self.count.clone()
        return h, h


@style
class ClassCounter(Base):
    calls = 0

    def setup(self) -> None:
        type(self).calls = 0

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        type(self).calls += 1
        h = self.new(x, state) * (1 if type(self).calls % 2 else 0.5)
        return h, h


CALLS = 0


@style
class GlobalCounter(Base):
    def setup(self) -> None:
        global CALLS
        CALLS = 0

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        global CALLS
        CALLS += 1
        h = self.new(x, state) * (1 if CALLS % 3 else 0.5)
        return h, h


@style
class DefaultThatGrows(Base):
    def setup(self) -> None:
        def grow(seen: list[int] = []) -> int:  # noqa: B006 - as people write it
            seen.append(1)
            return len(seen)

        self.grow = grow

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state) / self.grow()
        return h, h


# in place


@style
class AddedInPlace(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state += self.ih(x)
        return state, state


@style
class PartWritten(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a = self.ih(x) + self.hh(state)
        a[:, 0] = x[:, 0]
        h = torch.tanh(a)
        return h, h


@style
class InputScaledInPlace(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        x *= 2
        h = self.new(x, state)
        return h, h


@style
class MaskedInPlace(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a = self.ih(x) + self.hh(state)
        h = torch.tanh(a.masked_fill_(a.abs() < 0.1, 0.0).clamp_(-0.9, 0.9))
        return h, h


# nests


@style
class TurnedDict(Base):
    def initial_state(self, batch: int, like: Tensor) -> Any:
        return {"h": like.new_zeros(batch, H), "a": like.new_ones(batch, 2)}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state["h"]) * state["a"][:, :1]
        return h, {"a": 0.9 * state["a"], "h": h}


@style
class SameDict(TurnedDict):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state["h"] = self.new(x, state["h"])
        state["a"] = state["a"] * 0.5
        return state["h"] * state["a"][:, :1], state


class Both(NamedTuple):
    h: Tensor
    c: Tensor


@style
class OwnTuple(Base):
    def initial_state(self, batch: int, like: Tensor) -> Any:
        return Both(like.new_zeros(batch, H), like.new_ones(batch, H))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state.h) + state.c
        return h, state._replace(h=h, c=state.c * 0.5)


@style
class ListOfLayers(es.Cell):
    def __init__(self) -> None:
        super().__init__(D, H)
        self.cells = nn.ModuleList([nn.LSTMCell(D, H), nn.LSTMCell(H, H), nn.LSTMCell(H, H)])

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return [(like.new_zeros(batch, H), like.new_zeros(batch, H)) for _ in self.cells]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        new = []
        for cell, old in zip(self.cells, state, strict=True):
            h, c = cell(x, old)
            new.append((h, c))
            x = x + h if x.shape == h.shape else h
        return x, new


# parameters and weights


@style
class GatesInADict(es.Cell):
    def __init__(self) -> None:
        super().__init__(D, H)
        self.w = nn.ParameterDict({gate: nn.Parameter(torch.randn(H, D + H) / 3) for gate in "ifo"})

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        xh = torch.cat((x, state), dim=1)
        i, f, o = (torch.sigmoid(xh @ self.w[gate].T) for gate in "ifo")
        h = f * state + i * torch.tanh(o)
        return o * h, h


@style
class NamedGates(es.Cell):
    def __init__(self) -> None:
        super().__init__(D, H)
        for gate in "zrn":
            setattr(self, f"W_{gate}", nn.Linear(D + H, H))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        z, r = (torch.sigmoid(getattr(self, f"W_{g}")(torch.hstack([x, state]))) for g in "zr")
        h = z * state + (1 - z) * self.W_n(torch.hstack([x, r * state])).tanh()
        return h, h


@style
class Einsum(es.Cell):
    def __init__(self) -> None:
        super().__init__(D, H)
        self.w, self.u = nn.Parameter(torch.randn(2, H // 2, D) / 2), nn.Parameter(torch.randn(2, 2, 2) / 2)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        heads = state.view(-1, 2, 2)
        h = torch.tanh(torch.einsum("hod,bd->bho", self.w, x) + torch.einsum("hij,bhj->bhi", self.u, heads)).flatten(1)
        return h, h


@style
class Chunks(es.Cell):
    def __init__(self) -> None:
        super().__init__(D, H)
        self.all = nn.Linear(D + H, 3 * H)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        (f, g), o = (both := self.all(torch.cat([x, state], -1)))[:, : 2 * H].chunk(2, 1), both.split([2 * H, H], 1)[1]
        h = f.sigmoid() * state + g.tanh()
        return h * o.sigmoid(), h


@style
class MaskInABuffer(Base):
    mask: Tensor

    def setup(self) -> None:
        self.register_buffer("mask", torch.tril(torch.ones(H, H)))

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.ih(x) + F.linear(h, self.hh.weight * self.mask))


@style
class OldWeightNorm(Base):
    def setup(self) -> None:
        weight_norm(self.hh)


@style
class OldSpectralNorm(Base):
    def setup(self) -> None:
        spectral_norm(self.hh)


@style
class Pruned(Base):
    def setup(self) -> None:
        prune.l1_unstructured(self.hh, "weight", 0.5)
        prune.random_structured(self.ih, "weight", 0.3, dim=1)


@style
class Parametrized(Base):
    def setup(self) -> None:
        parametrizations.orthogonal(self.hh)
        parametrizations.weight_norm(self.ih)


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


@style
class OwnParametrization(Base):
    def setup(self) -> None:
        parametrize.register_parametrization(self.hh, "weight", Symmetric())


@style
class CachedParametrization(OwnParametrization):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        with parametrize.cached():
            return super().step(x, self.new(x, state))


@style
class HooksInside(Base):
    def setup(self) -> None:
        self.hh.register_forward_hook(lambda module, given, found: found * 0.5)
        self.ih.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


@style
class HookThatCounts(Base):
    def setup(self) -> None:
        self.seen: list[int] = []
        self.hh.register_forward_hook(lambda module, given, found: (self.seen.append(1), found / len(self.seen))[1])


@style
def NormOnACell() -> es.Cell:
    cell = es.GRU(D, H)
    weight_norm(cell, "weight_hh")
    return es.Stack(cell, es.Residual(es.GRU(H, H)))


# code of all kinds


def scripted(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * torch.sigmoid(b)


@style
class ScriptedFunction(Base):
    def setup(self) -> None:
        self.combine = [torch.jit.script(scripted)]

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return self.combine[0](self.ih(x), self.hh(h))  # type: ignore[no-any-return]


@style
class ScriptedModule(Base):
    def setup(self) -> None:
        self.inner = torch.jit.script(nn.Sequential(nn.Linear(H, H), nn.Tanh()))

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return self.inner(self.ih(x) + h)  # type: ignore[no-any-return]


@dataclass
class Settings:
    leak: float = 0.3
    act: str = "tanh"


@style
class Configured(Base):
    def setup(self) -> None:
        self.cfg = Settings()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.2)

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return (1 - self.cfg.leak) * h + self.cfg.leak * getattr(torch, self.cfg.act)(self.act(self.ih(x) + self.hh(h)))


@style
def Closure() -> es.Cell:
    scale, shift = torch.randn(H), np.float32(0.25)

    class Closed(Base):
        def new(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.ih(x) * scale + self.hh(h) * float(shift))

    return Closed()


@style
class NumpyConstant(Base):
    def setup(self) -> None:
        self.phases = np.linspace(0, 1, H, dtype=np.float32)

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.ih(x) + self.hh(h) * torch.from_numpy(self.phases))


@style
class NumberOfAParameter(Base):
    def setup(self) -> None:
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh((self.ih(x) + self.hh(h)) / self.temperature.item())


@style
class Branches(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        h = super().new(x, h)
        return h if x.sum() > 0 else -h


@style
class PartWithoutGradient(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(self.hh(h))
        return torch.tanh(self.ih(x) + gate * h)


@style
class Detached(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.ih(x) + self.hh(h.detach()) + 0.1 * h)


@style
class Attempts(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        try:
            return torch.tanh(self.ih(x) + self.missing(h))
        except AttributeError:
            return torch.tanh(self.ih(x) + self.hh(h))


@style
class DropoutInside(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.ih(x) + self.hh(h)), 0.3, self.training)


@style
class BatchNormInside(Base):
    def setup(self) -> None:
        self.norm = nn.BatchNorm1d(H)

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.ih(x) + self.hh(h)))


@style
class LayerNormInside(Base):
    def setup(self) -> None:
        self.norms = nn.ModuleDict({"x": nn.LayerNorm(H), "h": nn.LayerNorm(H)})

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norms["x"](self.ih(x)) + self.norms["h"](self.hh(h)))


@style
class ByMode(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state)
        if not self.training:
            return h, h
        return h * 1.5, h


@style
class OthersCells(es.Cell):
    def __init__(self) -> None:
        super().__init__(D, H)
        self.lower, self.upper = es.LSTM(D, H), es.GRU(H, H)

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return self.lower.initial_state(batch, like), self.upper.initial_state(batch, like)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, below = self.lower.step(x, state[0])
        y, above = self.upper.step(y, state[1])
        return y, (below, above)


def doubled(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def run(self: Any, x: Tensor, state: Any) -> Any:
        y, new = step(self, x, state)
        return 2 * y, new

    return run


@style
class Decorated(Base):
    @doubled
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().step(x, state)


@style
def StepOfTheInstance() -> es.Cell:
    def step(self: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state) - 0.5
        return h, h

    cell = Base()
    cell.step = types.MethodType(step, cell)  # type: ignore[method-assign]
    return cell


@style
class ForwardIsTheStep(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h = self.new(x, h)
        return h, h

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.forward(x, state)


@style
class ZerosOfTheBatch(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        pad = torch.zeros(x.size(0), H - D)
        h = torch.tanh(torch.cat([x, pad], 1) + self.hh(state))
        return h, h


@style
class MeanOfTheBatch(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.ih(x - x.mean(0)) + self.hh(h))


@style
class Recomputing(Base):
    def new(self, x: Tensor, h: Tensor) -> Tensor:
        made: Tensor = torch.utils.checkpoint.checkpoint(super().new, x, h, use_reentrant=False)
        return made


@style
class AttendsToItself(Base):
    def initial_state(self, batch: int, like: Tensor) -> Any:
        return like.new_zeros(batch, 3, H)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        q = self.ih(x)
        weights = torch.softmax(torch.bmm(state, q.unsqueeze(2)).squeeze(2), -1)
        read = torch.bmm(weights.unsqueeze(1), state).squeeze(1)
        h = torch.tanh(q + self.hh(read))
        return h, torch.cat([state[:, 1:], h.unsqueeze(1)], 1)


@style
class Prints(Base):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.new(x, state)
        logging.getLogger("somebody").debug("h %s", tuple(h.shape))
        return h, h


Found = list[Tensor | None]


def ends(cell: es.Cell, ys: Tensor, xs: Tensor) -> Found:
    """Outputs, and gradients of all that learns."""
    wanted = [xs, *(p for p in cell.parameters() if p.requires_grad)]
    return [ys, *torch.autograd.grad(ys.square().sum(), wanted, allow_unused=True)]


def looped(cell: es.Cell, xs: Tensor) -> Tensor:
    """The plain loop, where nobody else has what a step is given or gives."""
    state, ys = cell.initial_state(len(xs), xs), []
    for x in xs.unbind(1):
        y, state = cell.step(x.clone(), map_state(torch.clone, state))
        ys.append(y.clone())
    return torch.stack(ys, 1)


def twice(name: str, training: bool, run: Callable[[es.Cell, Tensor], Tensor]) -> list[Found]:
    torch.manual_seed(0)
    cell = MADE[name]().train(training)
    found = []
    for rows in (2, 3):
        torch.manual_seed(rows)
        xs = torch.randn(rows, 6, D, requires_grad=True)
        torch.manual_seed(4)
        found.append(ends(cell, run(cell, xs), xs))
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.mul_(1.25)
    return found


def noted(name: str, prepare: Callable[..., Any], ran: list[str], *given: Any, **more: Any) -> Any:
    """What a backend prepares, which notes its name when it runs."""
    found = prepare(*given, **more)
    return found if isinstance(found, Refusal) else lambda state: ran.append(name) or found(state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_auto_is_the_plain_loop_or_says_that_it_loops(
    name: str, training: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep.native.toolchain._noticed", set())
    ran: list[str] = []
    for backend in BACKENDS.values():
        monkeypatch.setattr(backend, "prepare", functools.partial(noted, backend.name, backend.prepare, ran))
    with caplog.at_level(logging.WARNING, "everstep"):
        ours = twice(name, training, lambda cell, xs: es.scan(cell, xs)[0])
    theirs = twice(name, training, looped)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            if a is None or b is None:  # of zeros
                assert not (a if b is None else b).any() if (a is None) != (b is None) else True  # type: ignore[union-attr]
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if "reference" in ran:
        assert "runs step by step, not compiled: " in caplog.text


def test_there_are_many_styles_and_most_are_compiled() -> None:
    torch.manual_seed(0)
    compiled = [
        name for name, make in MADE.items() if es.explain(make().eval(), torch.randn(2, 6, D)).backend == "fused"
    ]
    assert len(MADE) >= 45
    assert len(compiled) >= 25

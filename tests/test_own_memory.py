"""The final state is the caller's: writing over it changes no output, input, earlier state or weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.state import leaves, map_state
from tests.laws import LAYERS, PLAIN, WIRINGS, D, H


class Carrying(es.Cell):
    """Leaves that are its input, a view of it, what they were at the start, a weight, and one another."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.start = nn.Parameter(torch.randn(H))
        self.linear = nn.Linear(D, H)

    def initial_state(self, batch: int, like: Tensor) -> Any:
        zeros = like.new_zeros(batch, H)
        return {
            "x": like.new_zeros(batch, D),
            "part": like.new_zeros(batch, 1),
            "kept": self.start.expand(batch, H),
            "pair": (zeros, zeros),
            "weight": zeros,
        }

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = torch.tanh(self.linear(x) + state["pair"][1] + state["kept"])
        weight = self.linear.bias.expand(len(x), H)
        return h, {"x": x, "part": x[:, 1:2], "kept": state["kept"], "pair": (h, h), "weight": weight}


EVERY: dict[str, Any] = {
    **LAYERS,
    "Carrying": Carrying,
    "Conditioned feed": lambda: es.Conditioned(es.GRU(D + 2, H), 2, "feed"),
}
ALONE = (*PLAIN, "SLSTM", "Carrying")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "auto") for name in (*WIRINGS, "Conditioned feed")),
        *((name, other) for name in ALONE for other in ("auto", *BACKENDS)),
    ],
)
def test_what_is_written_over_the_final_state_changes_nothing_else(name: str, backend: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = EVERY[name]().train(training)
    ran = 0
    for time, lengths in ((5, None), (5, [0, 3]), (4, [0, 0]), (1, None), (0, None), (0, [0, 0])):
        xs = torch.randn(2, time, layer.input_size)
        for start in (None, map_state(torch.clone, layer.initial_state(2, xs))):
            how: dict[str, Any] = {"lengths": None if lengths is None else torch.tensor(lengths), "backend": backend}
            try:
                ys, final = layer(xs, start, **how)
            except ValueError as refusal:
                if "cannot run" not in str(refusal):
                    raise
                continue
            ran += 1
            ends = [leaf for _, leaf in leaves(final)]
            given = [leaf for _, leaf in leaves(() if start is None else start)]
            others = [xs, ys, *given, *layer.parameters(), *layer.buffers()]
            before = [t.detach().clone() for t in (*others, *ends)]
            with torch.no_grad():
                for place, leaf in enumerate(ends, len(others)):
                    leaf.fill_(7)
                    before[place].fill_(7)
                    for now, then in zip((*others, *ends), before, strict=True):
                        assert torch.equal(now, then)
    assert ran or backend != "auto"


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("name", ALONE)
def test_gradients_go_on_when_the_final_state_is_written_over(name: str, backend: str) -> None:
    for lengths, resets in ((None, None), (torch.tensor([5, 2]), None), (None, torch.eye(5)[1:3].bool())):
        found = []
        for writes in (False, True):
            torch.manual_seed(0)
            layer, xs = EVERY[name](), torch.randn(2, 5, D, requires_grad=True)
            try:
                ys, final = layer(xs, lengths=lengths, resets=resets, backend=backend)
            except ValueError:
                assert backend != "auto"
                continue
            if writes:
                for _, leaf in leaves(final):
                    leaf.detach()[0] = 0
            found.append(torch.autograd.grad(ys.square().sum(), [xs, *layer.parameters()], allow_unused=True))
        for ours, theirs in zip(*found, strict=True) if found else ():
            assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_stream_hands_out_nothing_of_its_own(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("everstep.stream._compile", lambda *_: "no")
    for make in (lambda: es.GRU(D, H), lambda: es.Identity(D), lambda: es.Window(D, 1)):
        torch.manual_seed(0)
        cell = make().eval()
        xs, stream = torch.randn(2, 4, D), es.Stream(cell, 2)
        want, state = cell(xs)[0], None
        got = []
        for x in xs.unbind(1):
            y = stream(x.contiguous())
            got.append(y.clone())
            y.fill_(7)
            state = stream.state
            map_state(lambda leaf: leaf.fill_(7), state)
        torch.testing.assert_close(torch.stack(got, 1), want)
        x = xs[:, 0].contiguous()
        stream(x).fill_(7)
        assert torch.equal(x, xs[:, 0])

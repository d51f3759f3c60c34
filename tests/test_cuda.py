"""On a GPU of NVIDIA's: everything equals the CPU. `pytest tests/test_laws.py --device cuda` holds the laws there."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import learn_toy as toy
import pytest
import torch
from laws import LAYERS
from test_laws import F64, assert_same, build, carried, everything, inputs, ways
from torch import Tensor, nn

import everstep as es
from everstep.learn import read_metrics
from everstep.state import State, leaves, map_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def on(device: str, tree: object) -> object:
    return map_state(lambda leaf: leaf.to(device), tree)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_the_cpu(name: str) -> None:
    layer = build(name)
    xs, state = inputs(layer, 4, 15), carried(layer, 4)
    for how in ways(4, 15).values():
        there = {key: value.to("cuda") if isinstance(value, Tensor) else value for key, value in how.items()}
        got = everything(copy.deepcopy(layer).to("cuda"), xs.to("cuda"), on("cuda", state), **there)
        want = everything(layer, xs, state, "reference", **how)
        assert_same({key: value.cpu() for key, value in got.items()}, want, 1e-9)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_second_derivatives(name: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        layer = build(name).to(device)
        xs = torch.linspace(-1, 1, 30, dtype=F64, device=device).view(2, 5, 3).requires_grad_()
        ys, _ = es.scan(layer, xs, backend="reference")  # cuDNN has first derivatives only
        (first,) = torch.autograd.grad(ys.square().sum(), xs, create_graph=True)
        found.append(torch.autograd.grad(first.sin().sum(), [xs, *layer.parameters()]))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-9)


def test_explain_names_what_stood_in_the_way() -> None:
    told = str(es.explain(es.LSTM(3, 4).cuda(), torch.zeros(2, 5, 3, device="cuda")))
    assert "vendor" in told
    assert "CPUs alone" in told


def test_a_stream_equals_the_scan() -> None:
    cell = build("PeepholeLSTM").cuda()
    xs = torch.randn(2, 6, 3, dtype=F64, device="cuda")
    whole, _ = cell(xs)
    stream = es.Stream(cell, batch=2)
    stepped = torch.stack([stream(x).clone() for x in xs.unbind(1)], 1)
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-10)


def test_accelerated_modules_equal_pytorchs() -> None:
    plain = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True).cuda()
    xs = torch.randn(3, 7, 5, device="cuda")
    other = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True).cuda()
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(es.accelerate(other)(xs)[0], plain(xs)[0])


class Dropped(toy.Toy):
    """With a dropout of torch's generator: the one inside of cuDNN has a state that PyTorch does not tell."""

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, state = super().forward(inputs, state)
        return nn.functional.dropout(logits, 0.3, self.training), state


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_stops_and_resumes(precision: str, tmp_path: Path) -> None:
    def run(out: Path, steps: int, resume: bool = False) -> list[float]:
        model = Dropped(dropout=0.0).to("cuda")
        toy.run(out, model=model, max_steps=steps, checkpoint_every=4, precision=precision, resume=resume)
        return [p.detach().double().sum().item() for p in model.parameters()]

    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 8)
    assert run(tmp_path / "parts", 12, resume=True) == pytest.approx(whole, rel=1e-4)
    assert all(math.isfinite(r["loss"]) for r in read_metrics(tmp_path / "whole" / "metrics.jsonl"))


def test_checkpointed_online_and_echo_state() -> None:
    torch.manual_seed(3)
    xs = torch.randn(2, 12, 3, dtype=F64, device="cuda")
    cell = es.GRU(3, 4).double().cuda()
    for layer in (es.Checkpointed(cell, every=4), es.Checkpointed(cell, budget=10**6)):
        torch.testing.assert_close(layer(xs)[0], cell(xs)[0], rtol=0, atol=1e-10)
    echo = es.EchoState(es.Reservoir(3, 20, seed=1, dtype=F64), 2).cuda()
    targets = xs[..., :2].roll(1, 1)
    echo.fit(xs, targets, washout=2)
    assert (echo(xs)[0] - targets)[:, 2:].square().mean() < targets.var()
    online = es.Online(copy.deepcopy(cell))
    total = online(xs)[0].square().sum()
    found = torch.autograd.grad(total, [*online.cell.parameters()])
    for got, want in zip(found, torch.autograd.grad(cell(xs)[0].square().sum(), [*cell.parameters()]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_sampling() -> None:
    torch.manual_seed(0)
    cell, embedding, out = es.GRU(4, 6).cuda(), nn.Embedding(5, 4).cuda(), nn.Linear(6, 5).cuda()

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = cell.step(embedding(tokens), state)
        return out(y).log_softmax(-1), state

    start = cell.initial_state(3, torch.zeros(1, device="cuda"))
    drawn = es.sample(step, start, [1, 2], 7, count=3, top_p=0.9, generator=torch.Generator("cuda").manual_seed(1))
    assert drawn.shape == (3, 7)
    assert drawn.device.type == "cuda"


def test_states_move_with_their_layer() -> None:
    layer = es.EncoderStack(es.LSTM(3, 4), es.Bidirectional(es.GRU(4, 5), es.GRU(4, 5))).cuda()
    xs = torch.randn(2, 5, 3, device="cuda")
    _, state = layer(xs)
    assert all(leaf.device.type == "cuda" for _, leaf in leaves(state))


def test_a_recipe_trains_there_and_goes_on_here(tmp_path: Path) -> None:
    tiny = ["train.max_minutes=null", "train.max_steps=5", "train.validate_every=5", "model.hidden_size=16"]
    lines: list[str] = []
    run = es.train(
        "shakespeare-minute",
        tmp_path / "run",
        lines.append,
        overrides=[*tiny, "train.precision=float32", "data.valid_chars=3000"],
    )
    assert "device: cuda (train.device: auto)" in lines
    assert next(run.model.parameters()).is_cuda
    here, there = es.load(run.path), es.load(run.path, device="cuda")
    assert there.evaluate("valid")["loss"] == pytest.approx(here.evaluate("valid")["loss"], rel=1e-4)
    assert there.score(["To be"])[0].logp == pytest.approx(here.score(["To be"])[0].logp, rel=1e-4)
    assert len(there.generate("To be", length=80, seed=1)) == 85
    on = es.resume(run.path, lines.append, overrides=["train.max_steps=8", "train.device=cpu"])
    assert not next(on.model.parameters()).is_cuda
    assert read_metrics(run.path / "metrics.jsonl")[-1]["step"] == 8

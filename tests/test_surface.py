"""Loss surfaces and descents on them against direct evaluation, and the cliff that they show."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from untrained import untrained

import everstep as es
from everstep.learn.rules import clip_by_global_norm, clip_by_value
from everstep.look import cliff as cliffs
from everstep.look.cliff import OneUnit, cliff, cliff_loss, cliff_picture
from everstep.look.over_passages import landscape
from everstep.look.surface import Surface, descend, draw_surface, plane_picture, random_plane, surface
from everstep.runs.pictures import draw_over
from everstep.runs.run import Run


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.cell, self.out = es.GRU(2, 3), nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.xs = torch.randn(4, 6, 2)

    def loss(self) -> torch.Tensor:
        return (self.out(self.cell(self.xs)[0][:, -1]) - 1).square().mean()


def loss_of(model: nn.Module) -> torch.Tensor:
    assert isinstance(model, Model)
    return model.loss()


def test_a_surface_is_the_loss_at_each_place_and_leaves_the_model() -> None:
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = random_plane(model, seed=1)
    across, up = [-0.5, 0.0, 2.0], [-1.0, 0.25]
    found = surface(model, loss_of, (first, second), across, up)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.across.tolist() == across
    assert found.up.tolist() == up
    other = Model()
    for i, b in enumerate(up):
        for j, a in enumerate(across):
            moved = {name: before[name] + a * first[name] + b * second[name] for name in first}
            other.load_state_dict({**before, **moved})
            assert float(found.losses[i, j]) == pytest.approx(float(other.loss().detach()), rel=1e-6)


def test_random_directions_are_as_long_as_the_weights_and_differ() -> None:
    model = Model()
    nn.init.zeros_(model.out.bias)
    first, second = random_plane(model, seed=1)
    assert first.keys() == {name for name, _ in model.named_parameters()} - {"frozen"}
    for name, parameter in model.named_parameters():
        if name != "frozen":
            torch.testing.assert_close(first[name].norm(), parameter.detach().norm())
    cosine = sum(float((first[n] * second[n]).sum()) for n in first)
    assert abs(cosine) < 0.9 * sum(float(first[n].square().sum()) for n in first)
    again, _ = random_plane(model, seed=1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(random_plane(model, seed=2)[0]["out.weight"], first["out.weight"])


def test_a_failing_loss_leaves_the_model_and_a_wrong_plane_is_refused() -> None:
    model = Model()
    before = model.out.weight.detach().clone()

    def failing(model: nn.Module) -> torch.Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        surface(model, failing, random_plane(model), [1.0], [1.0])
    assert torch.equal(model.out.weight, before)
    with pytest.raises(ValueError, match=r"surface: the plane is of \['bias', 'weight'\], but the model has"):
        surface(model, loss_of, random_plane(nn.Linear(1, 1)), [1.0], [1.0])


def test_descent_is_plain_gradient_descent_with_its_rules() -> None:
    model, twin = Model(), Model()
    origin = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plane = random_plane(model, seed=3)
    path = descend(model, loss_of, plane, origin, rate=0.5, steps=4, rules=[clip_by_value(0.05)])
    optimizer, rule = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.5), clip_by_value(0.05)
    for step in range(4):
        optimizer.zero_grad()
        loss = twin.loss()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]).norm()
        assert float(path.losses[step]) == pytest.approx(float(loss.detach()), rel=1e-6)
        assert float(path.norms[step]) == pytest.approx(float(norm), rel=1e-5)
        rule(twin, step)
        optimizer.step()
    torch.testing.assert_close(model.out.weight, twin.out.weight)
    assert path.places.shape == (5, 2)
    assert path.places[0].tolist() == [0, 0]
    # the nearest place of the plane: what is left is at right angles to it
    basis = torch.stack([torch.cat([d[n].flatten() for n in d]) for d in plane], 1).double()
    moved = torch.cat([(dict(model.named_parameters())[n] - origin[n]).flatten() for n in plane[0]]).double().detach()
    torch.testing.assert_close(basis.T @ (moved - basis @ path.places[-1]), torch.zeros(2).double(), atol=1e-6, rtol=0)


def test_descent_ends_where_nothing_is_finite() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    plane = ({"weight": torch.ones(1, 1).double()}, {"weight": torch.ones(1, 1).double()})
    origin = {"weight": torch.zeros(1, 1).double()}
    path = descend(model, lambda m: (m.weight**20).sum(), plane, origin, rate=1.0, steps=50)
    assert not math.isfinite(float(path.losses[-1]))
    assert len(path.losses) == len(path.places) < 50


def test_the_cliff_has_a_wall_and_clipping_stays_on_this_side_of_the_world() -> None:
    found, without, clipped = cliff(side=41)
    # a wall: from one place to the next the loss grows tenfold, and more
    ratios = found.losses[:-1] / found.losses[1:]
    assert float(ratios.max()) > 10
    direct = OneUnit(float(found.across[7]), float(found.up[30]))
    assert float(found.losses[30, 7]) == pytest.approx(float(cliff_loss(direct).detach()))
    jumps = [(path.places[1:] - path.places[:-1]).norm(dim=1).max() for path in (without, clipped)]
    assert float(jumps[0]) > 50
    assert float(jumps[1]) <= cliffs.RATE * cliffs.NORM + 1e-9
    assert float(without.losses[-1]) > float(without.losses[0])
    assert float(clipped.losses[-50:].max()) < 0.1 * float(clipped.losses[0])


def test_pictures_are_drawn_with_names_and_a_sentence(tmp_path: Path) -> None:
    said = cliff_picture(tmp_path / "new" / "cliff.png", side=11)
    assert "cliff" in said
    assert (tmp_path / "new" / "cliff.png").stat().st_size > 20_000


def test_the_picture_of_a_plane_tells_the_losses_at_its_middle_and_its_ends(tmp_path: Path) -> None:
    model, told = Model(), list[tuple[int, int]]()
    said = plane_picture(
        model, loss_of, tmp_path / "plane.png", seed=4, span=0.5, side=5, progress=lambda *done: told.append(done)
    )
    assert told == [(k, 5) for k in range(1, 6)]
    assert (tmp_path / "plane.png").stat().st_size > 10_000
    plane, ends = random_plane(model, 4), [(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)]
    losses = [float(surface(model, loss_of, plane, [a], [b]).losses) for a, b in ends]
    assert f"(star: {float(model.loss().detach()):.2f})" in said
    assert f"{min(losses):.2f} to {max(losses):.2f} at a distance of 0.5" in said
    for side in (1, 4):
        with pytest.raises(ValueError, match=rf"side should be odd and ≥ 3, .* but is {side}"):
            plane_picture(model, loss_of, tmp_path / "no.png", side=side)


def test_a_plane_that_is_flat_or_not_finite_is_drawn(tmp_path: Path) -> None:
    model = Model()
    for value in (1.0, math.nan):
        said = plane_picture(model, lambda _, value=value: torch.tensor(value), tmp_path / "p.png", side=3)
        assert f"(star: {value:.2f})" in said


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An untrained language model."""
    torch.manual_seed(0)
    sizes = ["model.embedding_size=6", "model.hidden_size=8", "model.layers=2"]
    return untrained(tmp_path, "shakespeare-minute", *sizes)


def test_the_surface_of_a_run_is_that_of_its_loss_on_the_text(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "SIDE", 3)
    text = "To be, or not to be: that is the question:\n" * 12
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    ((path, said),) = draw_over(landscape, run, tmp_path / "p", text)
    assert (path.name, path.stat().st_size > 10_000) == ("loss-surface.png", True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    ids = [run.task.tokenizer.begin_id, *run.task.tokenizer.encode(text, line_end=False).tolist()]
    logs = []
    for start in range(0, 8 * 64, 64):
        state = run.model.initial_state(1)
        for token, target in pairwise(ids[start : start + 65]):
            with torch.no_grad():
                log_p, state = run.model.step(torch.tensor([token]), state)
            logs.append(float(log_p[0, target]))
    assert f"(star: {-sum(logs) / len(logs):.2f})" in said
    assert said.endswith("Measured on 512 characters.")


@pytest.mark.parametrize(
    ("text", "work", "read"), [("ab", 10**12, 2), ("a b c d\n" * 300, 0, 64), ("a b\n" * 600, 10**12, 1024)]
)
def test_how_much_of_a_text_a_surface_reads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, work: int, read: int
) -> None:
    monkeypatch.setattr(landscape, "SIDE", 3)
    monkeypatch.setattr(landscape, "WORK", work)
    ((_, said),) = draw_over(landscape, run, tmp_path, text)
    assert said.endswith(f"Measured on {read:,} characters.")


@pytest.mark.parametrize(
    "values", [[[math.nan, math.inf], [math.nan, math.nan]], [[0.0, 0.0], [0.0, 0.0]], [[2, 2]] * 2]
)
def test_surfaces_of_nothing_finite_or_all_equal_are_drawn(values: list[list[float]]) -> None:
    axes = Figure().subplots()
    places = torch.tensor([0.0, 1.0])
    draw_surface(axes, Surface(places, places, torch.tensor(values, dtype=torch.float64)), "x", "y")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
    axes.figure.draw_without_rendering()


def test_the_rule_of_the_picture_is_that_of_the_library() -> None:
    model = OneUnit(*cliffs.START)
    (1e6 * cliff_loss(model)).backward()
    clip_by_global_norm(cliffs.NORM)(model, 0)
    norm = math.hypot(float(model.w.grad), float(model.b.grad))
    assert norm == pytest.approx(cliffs.NORM)

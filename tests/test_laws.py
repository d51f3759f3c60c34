"""The laws of the core: what holds for every cell, wiring and backend of `laws.py`."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import APART, CELLS, JOINED, LAYERS, LONG, OWN_DERIVATIVES, D, example, refused
from torch import Tensor

import everstep as es
from everstep import wirings
from everstep.backends.dispatch import BACKENDS
from everstep.state import leaves, map_state, renewed, select, unflatten

F64 = torch.float64
HELD = {"LSTM", "LSTM no bias", "Bidirectional", "EncoderStack", "Feedback"}
"""Run also where the processor's abilities are held back."""
STEPS = (1, 2, 15, 63)
CLOSE = {"atol": 1e-8, "rtol": 1e-6}
"""Tolerances of a derivative in one direction beside differences in float64."""


def build(name: str, dtype: torch.dtype = F64) -> es.Layer:
    torch.manual_seed(7)
    return LAYERS[name]().to(dtype).eval()


@functools.cache
def _built(name: str, dtype: torch.dtype) -> es.Layer:
    return build(name, dtype)


def shared(name: str, dtype: torch.dtype = F64) -> es.Layer:
    """The layer of that name which all tests share, so that it is traced once; who changes a layer builds one.

    In every dtype its weights are the same numbers, those of float32.
    """
    layer = _built(name, dtype)
    torch.manual_seed(8)  # whatever was drawn before, and other numbers than the weights
    return layer


def inputs(layer: es.Layer, batch: int, time: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(batch, time, layer.input_size, dtype=dtype)


def carried(layer: es.Layer, batch: int, dtype: torch.dtype = F64) -> object:
    """A state that is not the initial one, with 3 for every free size."""

    def moved(leaf: Tensor) -> Tensor:
        if 0 in leaf.shape[1:]:
            leaf = leaf.new_zeros(batch, *(size or 3 for size in leaf.shape[1:]))
        return (leaf + torch.randn_like(leaf) / 3).detach()

    return map_state(moved, layer.initial_state(batch, torch.zeros(1, dtype=dtype)))


def everything(layer: es.Layer, xs: Tensor, state: object, backend: str = "auto", **how: object) -> dict[str, Tensor]:
    """Outputs, final state and every gradient, by name, of one scan."""
    xs = xs.clone().requires_grad_()
    state = map_state(lambda leaf: leaf.clone().requires_grad_(), state)
    ys, final = es.scan(layer, xs, state, backend=backend, **how)
    named = {"xs": xs, **{f"state.{n}": v for n, v in leaves(state)}, **dict(layer.named_parameters())}
    total = (ys * torch.linspace(-1, 1, ys.numel(), dtype=ys.dtype, device=ys.device).view_as(ys)).sum()
    for place, (_, leaf) in enumerate(leaves(final)):
        weights = torch.linspace(0.5, 1 + place, leaf.numel(), dtype=ys.dtype, device=ys.device)
        total = total + (leaf * weights.view_as(leaf)).sum()
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True, materialize_grads=True)
    found = {"ys": ys.detach(), **{f"final.{n}": v.detach() for n, v in leaves(final)}}
    return {**found, **{f"grad {n}": g for n, g in zip(named, grads, strict=True)}}


def exactly(layer: es.Layer, xs: Tensor, state: object, **how: object) -> dict[str, Tensor]:
    """The reference in float64, from the same numbers: how far float32 rounding alone carries a chaotic cell."""
    double = map_state(lambda leaf: leaf.double(), state)
    return everything(copy.deepcopy(layer).double(), xs.double(), double, "reference", **how)


def assert_same(
    got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float, exact: dict[str, Tensor] | None = None
) -> None:
    """Equal to `tolerance`, relative to the largest value, or to a few times the error of `want` itself."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = max(1.0, float(value.abs().max()) if value.numel() else 1.0)
        own = float((value - exact[name]).abs().max()) if exact is not None and value.numel() else 0.0
        within = max(tolerance * scale, 4 * own)
        torch.testing.assert_close(got[name], value, rtol=0, atol=within, msg=lambda m, n=name: f"{n}: {m}")


def ways(batch: int, time: int) -> dict[str, dict[str, object]]:
    lengths = torch.randint(0, time + 1, (batch,))
    lengths[0], lengths[1] = time, 0
    resets = torch.rand(batch, time) < 0.3
    return {
        "plain": {},
        "ragged": {"lengths": lengths},
        "resets": {"resets": resets},
        "both": {"lengths": lengths, "resets": resets},
        "reversed": {"lengths": lengths, "resets": resets, "reverse": True},
    }


@pytest.mark.parametrize(("name", "time"), [(n, t) for n in CELLS for t in STEPS] + [(n, 300) for n in LONG])
def test_backends_equal_the_reference(name: str, time: int) -> None:
    layer, single = shared(name), shared(name, torch.float32)
    xs, state = inputs(single, 4, time, torch.float32), carried(single, 4, torch.float32)
    wide, start = xs.double(), map_state(lambda leaf: leaf.double(), state)
    for way, how in ways(4, time).items():
        if time == 15 or way == "both" or (time < 15 and way in ("plain", "reversed")):
            want = everything(layer, wide, start, "reference", **how)
            for backend in named_backends(layer, wide):
                assert_same(everything(layer, wide, start, backend, **how), want, 1e-10)
        if way == "both":  # float32 alone rounds otherwise wherever sums have another order: `want` says how far
            loop = everything(single, xs, state, "reference", **how)
            for backend in named_backends(single, xs):
                assert_same(everything(single, xs, state, backend, **how), loop, 1e-5, want)


def named_backends(layer: es.Layer, xs: Tensor) -> list[str]:
    """All that take it but the reference; of a wiring, each part of which has its own, what `auto` finds."""
    if layer.sublayers() != (layer,):
        return ["auto"]
    taken = [n for n in BACKENDS if n != "reference" and refused(BACKENDS[n], layer, xs, None, None) is None]
    return taken if "fused" in taken else ["auto", *taken]


def test_wirings_join_by_themselves() -> None:
    exported = {name: getattr(wirings, name) for name in es.__all__ if hasattr(wirings, name)}
    layers = {name: kind for name, kind in exported.items() if isinstance(kind, type) and issubclass(kind, es.Layer)}
    assert {*layers} <= {name.split()[0] for name in LAYERS} | {*APART} | {*JOINED}
    for name in ("Bidirectional", "Delay", "Parallel", "RecurrentDropout", "Residual", "TimeSkip", "Window"):
        layer = example(layers[name])
        assert layer(torch.randn(2, 3, D))[0].shape == (2, 3, layer.output_size)
    with pytest.raises(TypeError, match=r"TimeDistributed\(module: nn.Module\): give it a line of LAYERS"):
        example(es.TimeDistributed)


@pytest.mark.parametrize("name", LAYERS)
def test_padded_equals_alone(name: str) -> None:
    layer = shared(name)
    xs, state = inputs(layer, 4, 9), carried(layer, 4)
    for how in ways(4, 9).values():
        lengths = how.get("lengths", torch.full((4,), 9))
        padded = xs.clone()
        for row, n in enumerate(lengths):
            padded[row, n:] = torch.nan
        xs_in = padded.clone().requires_grad_()
        ys, final = es.scan(layer, xs_in, state, **how)
        grad = torch.autograd.grad(ys.sum(), xs_in)[0]
        assert torch.isfinite(ys).all()
        assert torch.isfinite(grad).all()
        for row, n in enumerate(lengths.tolist()):
            mine = map_state(lambda leaf, r=row: leaf[r : r + 1], state)
            resets = None if "resets" not in how else how["resets"][row : row + 1, :n]
            alone, end = es.scan(
                layer, xs[row : row + 1, :n], mine, resets=resets, reverse=bool(how.get("reverse", False))
            )
            torch.testing.assert_close(ys[row : row + 1, :n], alone, rtol=0, atol=1e-10)
            assert not ys[row, n:].any()
            for (_, a), (_, b) in zip(leaves(final), leaves(end), strict=True):
                torch.testing.assert_close(a[row : row + 1], b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_chunked_equals_whole_and_steps(name: str) -> None:
    layer = shared(name)
    assert isinstance(layer, es.Cell)
    xs, state = inputs(layer, 3, 10), carried(layer, 3)
    whole, end = es.scan(layer, xs, state)
    first, middle = es.scan(layer, xs[:, :4], state)
    second, last = es.scan(layer, xs[:, 4:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-10)
    stepped = []
    for x in xs.unbind(1):
        y, state = layer.step(x, state)
        stepped.append(y)
    torch.testing.assert_close(torch.stack(stepped, 1), whole, rtol=0, atol=1e-10)
    for (_, a), (_, b), (_, c) in zip(leaves(end), leaves(last), leaves(state), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_chunked_equals_whole_in_second_derivatives(name: str) -> None:
    layer = shared(name)
    xs, state = inputs(layer, 2, 6), carried(layer, 2)
    wanted = [xs.requires_grad_(), *layer.parameters()]
    found = []
    for sizes in ([6], [2, 1, 3]):
        end, parts = state, []
        for chunk in xs.split(sizes, 1):
            ys, end = es.scan(layer, chunk, end)
            parts.append(ys)
        total = torch.cat(parts, 1).square().sum()
        first = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
        moved = sum((g.sin().sum() for g in first), total * 0)
        found.append([*first, *torch.autograd.grad(moved, wanted, allow_unused=True, materialize_grads=True)])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_resets_equal_sequences_begun_afresh(name: str) -> None:
    layer = shared(name)
    xs = inputs(layer, 2, 9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[0, 4] = resets[1, 0] = resets[1, 7] = True
    state = carried(layer, 2) if isinstance(layer, es.Cell) else None
    together, _ = layer(xs, state, resets=resets)

    def afresh(row: int, steps: slice) -> Tensor:
        begin = layer.initial_state(1, xs)
        if state is not None:  # a memory stays
            begin = renewed(begin, select(state, torch.tensor([row])))
        return layer(xs[row : row + 1, steps], begin)[0]

    torch.testing.assert_close(together[:1, 4:], afresh(0, slice(4, None)), rtol=0, atol=1e-10)
    torch.testing.assert_close(together[1:, :7], afresh(1, slice(7)), rtol=0, atol=1e-10)
    torch.testing.assert_close(together[1:, 7:], afresh(1, slice(7, None)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_permuting_the_batch_commutes(name: str) -> None:
    layer = shared(name)
    xs, state, order = inputs(layer, 5, 7), carried(layer, 5), torch.tensor([3, 0, 4, 1, 2])
    how = ways(5, 7)["both"]
    ys, final = es.scan(layer, xs, state, **how)
    moved = {key: value[order] for key, value in how.items()}
    ys2, final2 = es.scan(layer, xs[order], map_state(lambda leaf: leaf[order], state), **moved)
    torch.testing.assert_close(ys2, ys[order], rtol=0, atol=1e-12)
    for (_, a), (_, b) in zip(leaves(final2), leaves(final), strict=True):
        torch.testing.assert_close(a, b[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_nothing_in_nothing_out(name: str, shape: tuple[int, int]) -> None:
    layer = shared(name)
    state = carried(layer, shape[0])
    ys, final = es.scan(layer, inputs(layer, *shape), state)
    assert ys.shape == (*shape, layer.output_size)
    for (_, a), (_, b) in zip(leaves(final), leaves(state), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("uncompiled")  # weights are compared here: layers of one's own would each be traced
@pytest.mark.parametrize("name", LAYERS)
def test_saved_and_loaded_gives_the_same_bits(name: str, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    layer, other = build(name), LAYERS[name]().to(F64).eval()
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    xs = inputs(layer, 2, 6)
    assert torch.equal(layer(xs)[0], other(xs)[0])
    assert torch.equal(layer(xs)[0], copy.deepcopy(layer)(xs)[0])


@pytest.mark.parametrize(
    ("name", "backend"), [(name, "auto") for name in CELLS] + [(name, "reference") for name in OWN_DERIVATIVES]
)
def test_gradcheck_and_gradgradcheck(name: str, backend: str) -> None:
    """Inputs, state and parameters are one vector, so that a random direction crosses all of them at once."""
    layer = shared(name)
    xs, start = inputs(layer, 2, 3), carried(layer, 2)
    begin = [leaf for _, leaf in leaves(start)]
    given = [xs, *begin, *layer.parameters()]
    names, lengths = [n for n, _ in layer.named_parameters()], torch.tensor([3, 2])

    def run(vector: Tensor) -> Tensor:
        parts = zip(vector.split([v.numel() for v in given]), given, strict=True)
        xs, *rest = (part.view_as(like) for part, like in parts)
        state = unflatten(start, rest[: len(begin)])
        values = dict(zip(names, rest[len(begin) :], strict=True))
        how = {"lengths": lengths, "backend": backend}
        ys, final = torch.func.functional_call(layer, values, (xs, state), how)
        return torch.cat([ys.flatten(), *(leaf.flatten() for _, leaf in leaves(final))])

    vector = torch.cat([v.detach().flatten() for v in given]).requires_grad_()
    assert torch.autograd.gradcheck(run, vector, fast_mode=True, **CLOSE)
    assert torch.autograd.gradgradcheck(run, vector, fast_mode=True, **CLOSE)


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_need_not_be_contiguous(name: str) -> None:
    layer = shared(name)
    xs = torch.randn(7, 3, layer.input_size, dtype=F64).transpose(0, 1)
    torch.testing.assert_close(layer(xs)[0], layer(xs.contiguous())[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_parameters_and_no_grad(name: str) -> None:
    layer = shared(name)
    learned = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    layer.requires_grad_(False)
    try:
        xs = inputs(layer, 2, 5).requires_grad_()
        ys = layer(xs)[0]
        (grad,) = torch.autograd.grad(ys.sum(), xs)
        assert torch.isfinite(grad).all()
        with torch.no_grad():
            assert layer(xs)[0].grad_fn is None
    finally:
        for parameter in learned:
            parameter.requires_grad_()


@pytest.mark.parametrize("name", LAYERS)
def test_no_grad_changes_no_number_on_any_threads(name: str) -> None:
    layer = shared(name)
    xs = inputs(layer, 5, 40)
    ys, state = layer(xs)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(4):  # threads that disturb each other do not do so every time
                with torch.no_grad():
                    found, final = layer(xs)
                torch.testing.assert_close(found, ys.detach(), rtol=0, atol=1e-12)
                for (_, a), (_, b) in zip(leaves(final), leaves(state), strict=True):
                    torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CELLS)),
    batch=st.integers(1, 5),
    time=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    reverse=st.booleans(),
)
def test_any_shape_equals_the_reference(name: str, batch: int, time: int, seed: int, reverse: bool) -> None:
    layer = shared(name)
    torch.manual_seed(seed)
    xs, state = inputs(layer, batch, time), carried(layer, batch)
    how = {
        "lengths": torch.randint(0, time + 1, (batch,)),
        "resets": torch.rand(batch, time) < torch.rand(()),
        "reverse": reverse,
    }
    want = everything(layer, xs, state, "reference", **how)
    assert_same(everything(layer, xs, state, **how), want, 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.instructions if name in HELD else ()) for name in LAYERS]
)
def test_autocast_keeps_the_state_in_float32(name: str, dtype: torch.dtype) -> None:
    layer = shared(name, torch.float32)
    xs = inputs(layer, 2, 6, torch.float32)
    want, _ = layer(xs)
    with torch.autocast(xs.device.type, dtype):
        first, state = layer(xs[:, :3])
        second, state = layer(xs[:, 3:], state) if isinstance(layer, es.Cell) else (first, state)
    assert all(leaf.dtype == torch.float32 for _, leaf in leaves(state))
    if isinstance(layer, es.Cell):
        torch.testing.assert_close(torch.cat([first, second], 1).float(), want, rtol=0.05, atol=0.05)

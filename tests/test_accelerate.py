"""`accelerate`: PyTorch's modules on the compiled engine, held to the untouched ones."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import pickle
import re
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Refusal
from everstep.native import processor

F64 = torch.float64
ACCELERATE = importlib.import_module("everstep.wirings.accelerate")
KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "relu": lambda *sizes, **how: nn.RNN(*sizes, nonlinearity="relu", **how),
    "projected": lambda *sizes, **how: nn.LSTM(*sizes, proj_size=2, **how),
}


@pytest.fixture(autouse=True)
def _also_where_pytorch_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "outrun", lambda *arguments: False)


def flat(results: object) -> list[Tensor]:
    """The floating point tensors of what a module gives."""
    if isinstance(results, Tensor):
        return [results] if results.is_floating_point() else []
    return [] if results is None else [leaf for part in results for leaf in flat(part)]


def everything(model: nn.Module, *arguments: object) -> list[Tensor]:
    """Results and all gradients: of inputs that want one, then of parameters."""
    model.zero_grad()
    found = flat(model(*arguments))
    total = sum((v * torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view(v.shape)).sum() for v in found)
    wanted = [t for t in flat(arguments) if t.requires_grad]
    return [*(v.detach() for v in found), *torch.autograd.grad(total, [*wanted, *model.parameters()])]


def assert_same(model: nn.Module, plain: nn.Module, *arguments: object, atol: float = 1e-10) -> None:
    got, want = everything(model, *arguments), everything(plain, *arguments)
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, requires_grad=True)


def start(module: nn.RNNBase, *batch: int) -> Tensor | tuple[Tensor, Tensor]:
    rows = module.num_layers * (1 + module.bidirectional)
    h = leaf(rows, *batch, module.proj_size or module.hidden_size)
    return (h, leaf(rows, *batch, module.hidden_size)) if isinstance(module, nn.LSTM) else h


def pair(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain = module.double()
    return es.accelerate(copy.deepcopy(plain)), plain


OPTIONS = [(3, layers, both, True, first) for layers in (1, 3) for both in (False, True) for first in (False, True)]
OPTIONS += [(4, 3, False, False, False), (4, 1, True, False, True)]


@pytest.mark.parametrize(("size", "layers", "both", "bias", "first"), OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_untouched_module(
    kind: str, size: int, layers: int, both: bool, bias: bool, first: bool, engine_runs: list[str]
) -> None:
    model, plain = pair(KINDS[kind](size, 4, layers, bias=bias, batch_first=first, bidirectional=both))
    assert isinstance(model, type(plain))
    xs = leaf(5, 6, size) if first else leaf(6, 5, size)
    alone = leaf(6, size)
    lengths = torch.tensor([2, 6, 1, 4, 4])
    ragged = pack_padded_sequence(xs, lengths, batch_first=first, enforce_sorted=False)
    falling = pack_padded_sequence(xs, lengths.sort(descending=True)[0], batch_first=first)
    calls = [(xs,), (xs, start(plain, 5)), (alone,), (alone, start(plain))]
    for arguments in (*calls, (xs.detach(),)):
        assert_same(model, plain, *arguments)
    for packed in (ragged, falling):
        for hx in (None, start(plain, 5)):
            packed = PackedSequence(packed.data.detach().requires_grad_(), *packed[1:])
            assert_same(model, plain, packed, hx)
            assert_same(model.eval(), plain.eval(), packed, hx)
            got, want = model.train()(packed)[0], plain.train()(packed)[0]
            assert isinstance(got, PackedSequence)
            for mine, theirs in zip(got[1:], want[1:], strict=True):
                assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    assert len(engine_runs) == (5 + 12) * layers * (1 + both)
    with torch.no_grad():
        torch.testing.assert_close(model(xs), plain(xs), rtol=0, atol=1e-10)
        assert model(xs)[0].is_contiguous()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind: str) -> None:
    plain = KINDS[kind](30, 30, 1, bidirectional=True)
    assert_same(es.accelerate(copy.deepcopy(plain)), plain, torch.randn(50, 8, 30), atol=1e-3)
    with torch.no_grad():
        xs = torch.randn(50, 8, 30)
        torch.testing.assert_close(es.accelerate(copy.deepcopy(plain))(xs), plain(xs), rtol=0, atol=1e-5)


def test_dropout_between_layers(engine_runs: list[str]) -> None:
    model, plain = pair(nn.LSTM(3, 8, 2, dropout=0.4))
    xs = torch.randn(7, 5, 3, dtype=F64)
    assert_same(model.eval(), plain.eval(), xs)
    model.train()
    plain.train()
    assert not torch.equal(model(xs)[0], model(xs)[0])
    for last in (lambda m: m(xs)[0], lambda m: m(pack_padded_sequence(xs, [7, 7, 5, 3, 1]))[0].data):
        mean, expected = (torch.stack([last(m).detach() for _ in range(500)]) for m in (model, plain))
        torch.testing.assert_close(mean.mean(0), expected.mean(0), rtol=0, atol=0.02)
        torch.testing.assert_close(mean.std(0), expected.std(0), rtol=0, atol=0.02)
    nothing = es.accelerate(nn.GRU(3, 4, 2, dropout=1.0))
    assert nothing(torch.randn(7, 5, 3))[0].isfinite().all()
    assert engine_runs


WRONG = {
    "1-D": (torch.zeros(3),),
    "features": (torch.zeros(5, 2, 4),),
    "dtype": (torch.zeros(5, 2, 3, dtype=F64),),
    "no steps": (torch.zeros(0, 2, 3),),
    "state of another batch": (torch.zeros(5, 2, 3), "3 rows"),
    "state without batch": (torch.zeros(5, 2, 3), "no rows"),
    "packed features": (pack_padded_sequence(torch.zeros(5, 2, 4), [5, 3]),),
    "packed, state of another batch": (pack_padded_sequence(torch.zeros(5, 2, 3), [5, 3]), "3 rows"),
    "state of another dtype": (torch.zeros(5, 2, 3), "double"),
    "no tensor": ([1.0],),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_raises_as_pytorch_does(kind: str, case: str) -> None:
    plain = KINDS[kind](3, 4, 2)
    data, *rest = WRONG[case]
    if rest:
        how = {"3 rows": (3,), "no rows": (), "double": (2,)}[rest[0]]
        hx = start(plain, *how)
        rest = [hx if rest[0] == "double" else tuple(h.float() for h in hx) if isinstance(hx, tuple) else hx.float()]
    raised = []
    for model in (plain, es.accelerate(copy.deepcopy(plain))):
        with pytest.raises(Exception) as caught:
            model(data, *rest)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


def test_no_rows_give_what_pytorch_gives() -> None:
    model, plain = pair(nn.LSTM(3, 4, 2, bidirectional=True))
    xs = torch.zeros(5, 0, 3, dtype=F64)
    torch.testing.assert_close(model(xs), plain(xs))


def test_state_dicts_go_both_ways() -> None:
    model, plain = pair(nn.Sequential(nn.LSTM(3, 4, 2, proj_size=2), nn.Identity()))
    other = nn.Sequential(nn.LSTM(3, 4, 2, proj_size=2), nn.Identity()).double()
    assert list(model.state_dict()) == list(other.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in other.named_modules()]
    model.load_state_dict(other.state_dict())
    assert_same(model, other, leaf(5, 2, 3))
    plain.load_state_dict(model.state_dict())
    assert_same(model, plain, leaf(5, 2, 3))


def test_copies_and_pickles(engine_runs: list[str]) -> None:
    model, plain = pair(nn.ModuleList([nn.LSTM(3, 4, 2), nn.GRU(4, 5, bidirectional=True)]))
    model[0](leaf(5, 2, 3))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for other in copies:
        before = len(engine_runs)
        assert_same(other[0], plain[0], leaf(5, 2, 3))
        assert_same(other[1], plain[1], leaf(5, 2, 4))
        assert len(engine_runs) == before + 4
        with torch.no_grad():
            other[0].weight_hh_l0.zero_()
        assert model[0].weight_hh_l0.any()


def test_weights_go_with_their_model() -> None:
    model = es.accelerate(nn.LSTM(3, 4, 2, bidirectional=True).double())
    for _ in range(2):
        model(leaf(9, 2, 3))[0].sum().backward()
    known = [weakref.ref(p) for p in model.parameters()]
    del model
    assert [ref() for ref in known] == [None] * len(known)


def test_weights_that_are_tied_differently(engine_runs: list[str]) -> None:
    for ties in ({}, {"bias_hh_l0": "bias_ih_l0"}, {"weight_hh_l0": "weight_ih_l0"}, {}):
        model, plain = pair(nn.LSTM(4, 4))
        for both in (model, plain):
            for name, other in ties.items():
                setattr(both, name, getattr(both, other))
        assert_same(model, plain, leaf(9, 2, 4))
    assert len(engine_runs) == 4


def test_accelerate_is_idempotent_and_undone(caplog: pytest.LogCaptureFixture) -> None:
    class Own(nn.LSTM):
        pass

    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.ModuleList([nn.GRU(3, 4), nn.RNN(3, 4)]), "own": Own(3, 4)})
    model["again"] = model["a"]
    names = [type(m).__name__ for m in model.modules()]
    with caplog.at_level(logging.INFO, logger="everstep"):
        assert es.accelerate(model) is model
        assert es.accelerate(model) is model
        assert type(model["own"]) is Own
        assert type(model["a"]).__name__ == "AcceleratedLSTM"
        assert es.accelerate(model, undo=True) is model
    assert [type(m).__name__ for m in model.modules()] == names
    said = [record.getMessage().split(" in ")[0] for record in caplog.records]
    assert said == ["accelerated 3 modules", "accelerated 0 modules", "put back 3 modules"]
    for wrong in ([model], nn.LSTM, None):
        with pytest.raises(TypeError, match=r"expected an nn\.Module, but"):
            es.accelerate(wrong)


def test_hooks_ties_and_moves_go_on_working(engine_runs: list[str]) -> None:
    model, plain = pair(nn.ModuleList([nn.LSTM(4, 4), nn.LSTM(4, 4)]))
    for both in (model, plain):
        both[1].weight_ih_l0 = both[0].weight_hh_l0  # tied, after the swap
        both[1].weight_hh_l0 = both[1].weight_ih_l0
        both[1].bias_hh_l0 = both[0].bias_ih_l0
        both[0].register_forward_hook(lambda module, given, out: (out[0] * 2, out[1]))
    xs = leaf(5, 2, 4)
    whole = [nn.Sequential(m[0], _First(), m[1]) for m in (model, plain)]
    assert_same(*whole, xs)
    model.float(), plain.float()
    torch.testing.assert_close(model[1](xs.float()), plain[1](xs.float()))
    model.double(), plain.double()
    assert_same(*whole, xs)
    assert len(engine_runs) == 5


class _First(nn.Module):
    def forward(self, given: tuple[Tensor, object]) -> Tensor:
        return given[0]


def test_inference_mode() -> None:
    model, plain = pair(nn.LSTM(3, 4, 2))
    xs = torch.randn(5, 2, 3, dtype=F64)
    with torch.inference_mode():
        torch.testing.assert_close(model(xs), plain(xs), rtol=0, atol=1e-10)
    assert_same(model, plain, leaf(5, 2, 3))


def test_double_backward() -> None:
    model, plain = pair(nn.LSTM(3, 4, 2))
    xs = leaf(4, 2, 3)
    found = []
    for module in (model, plain):
        (first,) = torch.autograd.grad(module(xs)[0].square().sum(), xs, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [xs, *module.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)


def test_frozen_parameters() -> None:
    model, plain = pair(nn.GRU(3, 4).requires_grad_(False))
    xs = leaf(4, 2, 3)
    (got,), (want,) = (torch.autograd.grad(m(xs)[0].square().sum(), xs) for m in (model, plain))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    model.weight_hh_l0.requires_grad_()
    (got,) = torch.autograd.grad(model(xs)[0].sum(), model.weight_hh_l0)
    assert got.any()


def test_modules_of_one_shape_do_not_disturb_each_other_in_threads() -> None:
    pairs = [pair(nn.LSTM(3, 4)) for _ in range(4)]
    xs = torch.randn(9, 2, 3, dtype=F64)
    wrong: list[str] = []

    def work(model: nn.Module, plain: nn.Module) -> None:
        want = plain(xs)[0]
        if not all(torch.allclose(model(xs)[0], want, rtol=0, atol=1e-10) for _ in range(50)):
            wrong.append("differs")

    threads = [threading.Thread(target=work, args=both) for both in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_falls_back(engine_runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.LSTM(3, 4, 2).eval()
    model = es.accelerate(copy.deepcopy(plain))
    xs = torch.randn(5, 2, 3)
    half = copy.deepcopy(model).bfloat16(), copy.deepcopy(plain).bfloat16()
    assert torch.equal(half[0](xs.bfloat16())[0], half[1](xs.bfloat16())[0])
    assert model.to("meta")(xs.to("meta"))[0].device.type == "meta"
    model = es.accelerate(copy.deepcopy(plain))
    with torch.device("meta"):
        assert torch.equal(model(xs)[0], plain(xs)[0])
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.zeros(5, 2, 3))
    monkeypatch.setattr(fused, "prepare", lambda *given, **more: Refusal("there is no compiler"))
    assert torch.equal(model(xs)[0], plain(xs)[0])
    assert not engine_runs


@pytest.mark.instructions
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_autocast_is_pytorchs(kind: Any, engine_runs: list[str]) -> None:
    plain, xs = kind(3, 4, 2).eval(), torch.randn(5, 2, 3)
    model = es.accelerate(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        try:
            want = plain(xs)[0]
        except RuntimeError as error:  # its LSTM, where oneDNN has none for this processor
            assert not processor.onednn(torch.bfloat16)
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:60])):
                model(xs)
        else:
            assert model(xs)[0].dtype == want.dtype
            assert torch.equal(model(xs)[0], want)
    assert not engine_runs


def test_falls_back_where_pytorch_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    few, many = torch.randn(2, 5, 3), torch.randn(20, 5, 3)
    for plain in (nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4)):
        model = es.accelerate(copy.deepcopy(plain))
        torch.testing.assert_close(model(few), plain(few), rtol=0, atol=0)
        torch.testing.assert_close(model(many), plain(many))
    assert fused.outrun("lstm", 20, 7, True)
    with torch.no_grad():
        assert not fused.outrun("lstm", 20, 7, True)
    assert not fused.outrun("lstm", 20, 7, False)
    assert not fused.outrun("lstm", 256, 2, True)
    assert fused.outrun("gru", 64, 2, True)
    assert fused.outrun("rnn_tanh", 64, 4, True)


def test_scripted_and_traced() -> None:
    plain = nn.LSTM(3, 4, 2).eval()
    model = nn.Sequential(es.accelerate(copy.deepcopy(plain)))
    xs = torch.randn(5, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces the end of TorchScript
        traced = torch.jit.trace(model, xs)
        scripted = torch.jit.script(model)
    assert type(model[0]) is nn.LSTM
    for other in (traced, scripted):
        assert "aten::lstm" in str(other.inlined_graph)
        torch.testing.assert_close(other(xs)[0], plain(xs)[0])


def test_compiled_and_exported() -> None:
    plain = nn.LSTM(3, 4, 2).eval()
    model = es.accelerate(copy.deepcopy(plain))
    xs = torch.randn(5, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager")(xs)
        exported = torch.export.export(model, (xs,)).module()(xs)
    for other in (compiled, exported):
        torch.testing.assert_close(other, plain(xs), rtol=0, atol=1e-6)


def test_functional_call_and_vmap() -> None:
    plain = nn.GRU(3, 4).double()
    model = es.accelerate(copy.deepcopy(plain))
    xs = torch.randn(5, 2, 3, dtype=F64)
    values = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    got, want = (torch.func.functional_call(m, values, (xs,)) for m in (model, plain))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    grads = [torch.func.grad(lambda x, m=m: m(x)[0].square().sum())(xs) for m in (model, plain)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-10)


def test_a_parametrized_weight(engine_runs: list[str]) -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model, plain = pair(nn.LSTM(3, 4))
    for module in (model, plain):
        nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Halved())
    assert_same(model, plain, leaf(5, 2, 3))
    assert engine_runs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("spec", [True, False])
def test_what_looks_by_type_finds_them(kind: Any, spec: bool) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": kind(8, 16), "out": nn.Linear(16, 3)}).eval()
    fast = es.accelerate(copy.deepcopy(model))
    found = [torch.ao.quantization.quantize_dynamic(m, {kind, nn.Linear} if spec else None) for m in (fast, model)]
    assert [type(m["rnn"]) for m in found] == [getattr(torch.ao.nn.quantized.dynamic, kind.__name__)] * 2
    xs = torch.randn(5, 2, 8)
    assert torch.equal(found[0]["rnn"](xs)[0], found[1]["rnn"](xs)[0])
    rnn: Any = fast["rnn"]
    assert type(rnn) is not kind
    assert type(rnn) == kind  # noqa: E721 - as people write it
    assert kind == type(rnn)  # noqa: E721
    assert {kind: 1}.get(type(rnn)) == 1
    assert type(rnn) != nn.RNN  # noqa: E721
    es.accelerate(fast)
    assert type(pickle.loads(pickle.dumps(fast))["rnn"]).__name__ == f"Accelerated{kind.__name__}"
    assert type(es.accelerate(fast, undo=True)["rnn"]) is kind  # type: ignore[index]

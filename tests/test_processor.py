"""What the processor has is known in one place; whatever needs an instruction does without it where it is absent."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.cli.app import app
from everstep.learn.precision import uses_bfloat16
from everstep.native import processor, toolchain
from everstep.native.kernels import has_bf16
from everstep.runs.training import train

pytestmark = pytest.mark.instructions
SHORT = (torch.bfloat16, torch.float16)
real = processor.instructions.__wrapped__  # type: ignore[attr-defined]
needs_compiler = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says which instructions there are, and whether oneDNN has short numbers."""

    def found(*flags: str, onednn: bool = False, held: str = "") -> None:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", held)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(processor, "facts", lambda: {"flags": " ".join(flags)})
        monkeypatch.setattr(processor, "instructions", real)
        monkeypatch.setattr(processor, "onednn", lambda dtype: onednn)

    return found


# ----------------------------------------------------------------------------------------------------- the one place


def test_nothing_else_looks_at_the_processor() -> None:
    looks = re.compile(r"cpuinfo|system/cpu|_is_mkldnn|_is_avx|_is_amx|get_cpu_capab|platform\.(machine|processor)\(")
    package = Path(es.__file__).parent
    found = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if looks.search(path.read_text("utf-8"))
    }
    assert found - {"cli/doctor.py"} == {"native/processor.py"}  # doctor names the system


def test_what_is_held_back_is_not_there(machine: Any) -> None:
    flags = ("sse2", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_bf16", "amx_bf16")
    for held, expected in (
        ("", set(flags)),
        ("avx512", set(flags)),
        ("avx2", {"sse2", "avx", "avx2", "fma", "avx_vnni"}),
        ("default", {"sse2"}),
    ):
        machine(*flags, held=held)
        assert processor.instructions() == expected


def test_products_in_bfloat16_need_the_instruction_and_onednn(machine: Any) -> None:
    for flags, onednn, held, expected in (
        (("avx2", "avx512f", "avx512_bf16"), True, "", True),
        (("avx2", "amx_bf16"), True, "", True),
        (("avx2", "avx512f"), True, "", False),  # which oneDNN then computes by those of float32
        (("avx2", "avx512f", "avx512_bf16"), False, "", False),
        (("avx2", "avx512f", "avx512_bf16"), True, "avx2", False),
    ):
        machine(*flags, onednn=onednn, held=held)
        assert processor.has_bfloat16() is expected
        assert uses_bfloat16("auto", torch.device("cpu")) == (expected, "")
        assert bool(uses_bfloat16("bfloat16", torch.device("cpu"))[1]) is not expected


def test_without_proc_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path, *how: Any, **more: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(Path, "read_text", absent)
    facts = processor.facts.__wrapped__()
    monkeypatch.setattr(processor, "facts", lambda: facts)
    assert set(facts) == {"machine", "processor"}
    assert processor.name()
    assert processor.cache(1) == 0
    for has in (False, True):
        for name in ("avx2", "avx512", "avx512_bf16"):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=has: has)
        assert real() == ({"avx2", "avx512f", "avx512_bf16"} if has else set())


def test_a_held_run_is_held_throughout() -> None:
    """PyTorch, oneDNN and the compiled engine agree on what there is."""
    held = processor.held()
    short = has_bf16() if toolchain.compiler() else False
    if held is None:
        assert short <= ("avx512_bf16" in processor.instructions())
        return
    assert torch.backends.cpu.get_cpu_capability() == held.upper()
    assert not any(name.startswith(("avx512", "amx")) for name in processor.instructions())
    assert not short
    assert not processor.has_bfloat16()
    if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2":
        assert not any(processor.onednn(dtype) for dtype in SHORT)


def test_doctor_says_what_there_is(machine: Any) -> None:
    machine("avx2", "avx512f", "avx512_bf16", onednn=True)
    out = CliRunner().invoke(app, ["doctor"]).output
    assert "avx2, avx512f, avx512_bf16\n" in out
    assert "bfloat16, float16\n" in out
    assert "in hardware (avx512_bf16)" in out
    machine("avx2", "avx512f", "avx512_bf16", held="avx2")
    out = CliRunner().invoke(app, ["doctor"]).output
    assert "avx2 by ATEN_CPU_CAPABILITY" in out
    assert "avx512f" not in out
    assert "not in hardware; float32 is faster here" in out


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [es.LSTM, es.GRU, es.LayerNormLSTM, es.IndRNN])
def test_the_compiled_loop_is_right_with_the_instructions_there_are(kind: Any, dtype: torch.dtype) -> None:
    cell, xs = kind(9, 37).to(dtype), torch.randn(5, 20, 9, dtype=dtype, requires_grad=True)
    lengths, found = torch.tensor([20, 3, 0, 11, 20]), []
    for backend in ("fused", "reference"):
        ys, _ = es.scan(cell, xs, lengths=lengths, backend=backend)
        found.append([ys, *torch.autograd.grad(ys.square().sum(), [xs, *cell.parameters()])])
    rounding = 1e-4 if dtype == torch.float32 else 1e-11
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=rounding * float(want.detach().abs().max()))


# ------------------------------------------------------------------------------------------- an LSTM under autocast


def gradients(cell: es.Cell, xs: Tensor, backend: str, **how: Any) -> list[Tensor]:
    xs = xs.clone().requires_grad_()
    ys, final = es.scan(cell, xs, backend=backend, **how)
    grads = torch.autograd.grad(ys.float().square().sum() + final.h.sum(), [xs, *cell.parameters()])
    return [ys.detach().float(), final.h.detach(), final.c.detach(), *grads]


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("shape", ["whole", "ragged", "full lengths", "reset", "reset at first"])
@pytest.mark.parametrize("dtype", SHORT)
def test_an_lstm_runs_on_pytorch_whatever_onednn_has(
    dtype: torch.dtype, shape: str, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if absent:
        monkeypatch.setattr(processor, "onednn", lambda dtype: False)
    cell, xs, resets = es.LSTM(5, 7), torch.randn(3, 6, 5), torch.zeros(3, 6, dtype=torch.bool)
    resets[1, 0] = True
    how: dict[str, Any] = {
        "whole": {},
        "ragged": {"lengths": torch.tensor([6, 0, 4])},
        "full lengths": {"lengths": torch.tensor([6, 6, 6])},
        "reset": {"resets": torch.rand(3, 6) < 0.4},
        "reset at first": {"resets": resets},
    }[shape]
    want = gradients(cell, xs, "reference", **how)
    with torch.autocast("cpu", dtype):
        got = gradients(cell, xs, "vendor", **how)
        with torch.no_grad():
            ys = es.scan(cell, xs, backend="vendor", **how)[0]
    for short, exact in zip([*got, ys.float()], [*want, want[0]], strict=True):
        torch.testing.assert_close(short, exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", [es.GRU, es.RNN])
@pytest.mark.parametrize("dtype", SHORT)
def test_other_kernels_need_no_onednn(kind: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "onednn", lambda dtype: False)
    cell, xs = kind(5, 7), torch.randn(3, 6, 5)
    want = es.scan(cell, xs, backend="reference")[0]
    with torch.autocast("cpu", dtype):
        got = es.scan(cell, xs, backend="vendor")[0]
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


@needs_compiler
@pytest.mark.parametrize("dtype", SHORT)
def test_auto_takes_pytorchs_lstm_only_where_onednn_has_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = es.LSTM(4, 512), torch.randn(2, 12, 4)
    monkeypatch.setattr(fused, "has_bf16", lambda: False)
    for onednn in (True, False):
        monkeypatch.setattr(processor, "onednn", lambda dtype, onednn=onednn: onednn)
        with torch.no_grad(), torch.autocast("cpu", dtype):
            assert es.explain(cell, xs).backend == ("vendor" if onednn else "fused")
        with torch.autocast("cpu", dtype):  # oneDNN has no training in float16
            trains = onednn and dtype == torch.bfloat16
            assert es.explain(cell, xs).backend == ("vendor" if trains else "fused")
    monkeypatch.setattr(processor, "onednn", lambda dtype: False)
    want = es.scan(cell, xs, backend="reference")[0]
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(es.scan(cell, xs)[0].float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("compiler", ["", "none"])
@pytest.mark.parametrize("absent", [False, True])
def test_training_in_bfloat16_runs_on_every_processor(
    absent: bool, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if absent:
        monkeypatch.setattr(processor, "onednn", lambda dtype: False)
    monkeypatch.setenv("EVERSTEP_COMPILER", compiler)
    text = tmp_path / "text.txt"
    text.write_text("a stitch in time saves nine\n" * 60, encoding="utf-8")
    changes = ["train.max_steps=3", "train.max_minutes=null", "train.precision=bfloat16", "model.hidden_size=16"]
    said: list[str] = []
    run = train("text-bytes", tmp_path / "run", log=said.append, overrides=[f"data.train={text}", *changes])
    assert any("it works, but float32 is faster" in line for line in said) is not processor.has_bfloat16()
    assert run.evaluate("valid")["tokens"] > 0

"""Packages that run recurrent cells, beside the compiled engine: torchrecurrent, TorchRL, JAX, ONNX Runtime."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from child import Child
from engine import QUICK, ratio, rounds, train
from timing import summary
from torch import Tensor, nn

import everstep as es

Result = dict[str, Any]
Way = Callable[[], object]


def told(times: dict[str, float]) -> str:
    """A median and its spread."""
    return f"{times['median_ms']:.3f} ms [{times['least_ms']:.3f} … {times['most_ms']:.3f}]"


def verdict(what: str, values: list[float], each: float, mean: float | None = None) -> None:
    """The geometric mean and the least beside what is wanted."""
    middle = math.exp(sum(map(math.log, values)) / len(values))
    wanted = f"wanted {each:g} each" + (f", {mean:g} on average" if mean else "")
    print(f"  {what}: geometric mean {middle:.2f}, least {min(values):.2f}; {wanted}", flush=True)


def seconds_of(way: Way) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def lacks(packages: dict[str, str]) -> bool:
    """Whether one of `packages` (name to what pip is asked for) is not installed, which is then said."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        print(f"left out: {', '.join(absent)} not installed: pip install {' '.join(packages.values())}")
    return bool(absent)


# of another equation than ours (see tests/test_torchrecurrent.py), of the same products
DIFFERENT: dict[str, tuple[Callable[[int], es.Cell], dict[str, Any]]] = {
    "LEM": (lambda n: es.LEM(n, n, dt=0.7), {"dt": 0.7}),
    "NAS": (lambda n: es.NASCell(n, n), {}),
    "SCRN": (lambda n: es.SCRN(n, n, alpha=0.9), {"alpha": 0.9}),
}


class Contextual(nn.Module):
    """What torchrecurrent's SCRN also computes: its output tanh(U h_t + V s_t)."""

    def __init__(self, cell: es.Cell, size: int):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.output_size, size)

    def forward(self, xs: Tensor, backend: str) -> tuple[Tensor, Any]:
        """Like a cell."""
        ys, state = self.cell(xs, backend=backend)
        return torch.tanh(self.head(ys)), state


def catalogue() -> list[str]:
    """The layers of torchrecurrent that everstep has."""
    import test_torchrecurrent as pairs

    return sorted({*pairs.EQUAL, *DIFFERENT}, key=str.lower)


def paired(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """A layer of theirs and our cell, of the same weights where the equation is the same."""
    import test_torchrecurrent as pairs

    def theirs(options: dict[str, Any]) -> nn.Module:
        layer: nn.Module = getattr(pairs.theirs, name)(size, size, batch_first=True, **options)
        return layer

    if name in DIFFERENT:
        make, options = DIFFERENT[name]
        cell = make(size)
        return theirs(options), Contextual(cell, size) if name == "SCRN" else cell
    with patch.multiple(pairs, D=size, H=size), torch.no_grad():  # sizes that the tests' functions read
        make, options, mapped = pairs.EQUAL[name]
        layer, cell = theirs(options), make()
        for key, value in options.items():  # scalars that are learned there, and constants here
            if isinstance(getattr(layer.cells[0], key, None), nn.Parameter):
                getattr(layer.cells[0], key).fill_(value)
        if name == "IndRNN":
            layer.cells[0].vector_u.clamp_(-1, 1)  # as theirs starts, it overflows
        weights = mapped({n.removeprefix("cells.0."): p for n, p in layer.named_parameters()})
        for key, parameter in cell.named_parameters():
            parameter.copy_(weights[key])
    return layer, cell


def torchrecurrent(quick: bool) -> list[Result]:
    """Every cell of both catalogues."""
    if lacks({"torchrecurrent": "torchrecurrent==0.2.5", "pytest": "pytest"}):
        return []
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    results: list[Result] = []
    for steps, batch, size in [(20, 8, 64)] if quick else [(100, 32, 256), (200, 8, 128)]:
        for name in catalogue():
            torch.manual_seed(0)
            layer, cell = paired(name, size)
            xs = torch.randn(batch, steps, size, requires_grad=True)

            def theirs(x: Tensor, layer: nn.Module = layer) -> Tensor:
                return layer(x)[0]

            def ours(x: Tensor, cell: nn.Module = cell) -> Tensor:
                return cell(x, backend="fused")[0]

            apart = None
            if name not in DIFFERENT:
                with torch.no_grad():
                    early = xs[:, :10]  # later steps of some amplify the last digit
                    ys = theirs(early)
                    apart = float((ys - ours(early)).abs().max() / ys.abs().max())
            found = ratio({"torchrecurrent": train(theirs, layer, xs), "fused": train(ours, cell, xs)})
            results.append({"cell": name, "shape": (steps, batch, size), "apart": apart, **found})
            print(
                f"{name:21} T{steps} B{batch} H{size}: {told(found['torchrecurrent'])} / {told(found['fused'])} = "
                f"{found['ratio']['fused']:.2f}; " + ("other equation" if apart is None else f"apart {apart:.0e}"),
                flush=True,
            )
        here = [r["ratio"]["fused"] for r in results if r["shape"] == (steps, batch, size)]
        verdict("torchrecurrent / fused", here, each=2, mean=5)
    return results


def torchrl(quick: bool) -> Result:
    """TorchRL's GRU with resets: rows cut into padded pieces, and its scan with a hand-written backward pass."""
    needed = {"torchrl": "torchrl==0.14.1", "tensordict": "tensordict==0.15.3", "hoptorch": "hoptorch"}
    if lacks(needed):
        return {}
    from tensordict import TensorDict
    from torchrl.modules import GRUModule

    torch.manual_seed(0)
    batch, steps, features, size = (8, 8, 32, 64) if quick else (64, 32, 32, 128)
    layer, cell = nn.GRU(features, size, batch_first=True), es.GRU(features, size)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    xs, resets = torch.randn(batch, steps, features, requires_grad=True), torch.rand(batch, steps) < 0.05

    def theirs(backend: str) -> Callable[[Tensor], Tensor]:
        keys = {"in_keys": ["x", "h"], "out_keys": ["y", ("next", "h")]}
        module = GRUModule(gru=layer, recurrent_backend=backend, default_recurrent_mode=True, **keys)

        def run(x: Tensor) -> Tensor:
            ys: Tensor = module(TensorDict({"x": x, "is_init": resets[..., None]}, x.shape[:2]))["y"]
            return ys

        return run

    def ours(x: Tensor) -> Tensor:
        return es.scan(cell, x, resets=resets, backend="fused")[0]

    # "auto", their advice, is pad in eager mode and scan under torch.compile
    runs = {"pad": theirs("pad"), "scan": theirs("scan"), "scan, torch.compile": torch.compile(theirs("scan"))}
    for run in runs.values():
        torch.testing.assert_close(run(xs), ours(xs), rtol=1e-4, atol=1e-4)
    found = ratio({**{name: train(run, layer, xs) for name, run in runs.items()}, "fused": train(ours, cell, xs)})
    beside = {name: found[name]["median_ms"] / found["fused"]["median_ms"] for name in runs}
    print(f"T{steps} B{batch} D{features} H{size}, resets 5 %: fused {told(found['fused'])}")
    for name, value in beside.items():
        print(f"  {name:20} {told(found[name])}, / fused {value:.2f}")
    verdict("the fastest of theirs / fused", [min(beside.values())], each=1)
    return {"shape": (steps, batch, features, size), "beside": beside, **found}


def in_turns(child: Child, ours: Way, name: str) -> Result:
    """Like `ratio`, over two processes: each counts its own time, of the second of two calls, while the other waits."""

    def again() -> float:
        ours()  # by the second call, the other process's threads no longer spin
        return seconds_of(ours)

    turns: dict[str, Callable[[], float]] = {name: lambda: child.ask()["seconds"], "fused": again}
    seconds: dict[str, list[float]] = {way: [] for way in turns}
    for number in range(1 + rounds(child.ask, ours)):
        for way, turn in turns.items():
            time.sleep(0.005)
            value = turn()
            if number:
                seconds[way].append(value)
    found: Result = {way: summary(values) for way, values in seconds.items()}
    return {**found, "ratio": {"fused": found[name]["median_ms"] / found["fused"]["median_ms"]}}


def jax(python: str | None, threads: int, quick: bool) -> Result:
    """flax's LSTM (`lax.scan`) under `jax.jit`."""
    if python is None:
        print("left out: --jax-python not given. python -m venv V; V/bin/pip install jax==0.10.2 flax==0.12.8")
        return {}
    child, results = Child(python, "rivals_jax.py", str(threads)), []
    print(", ".join(f"{name} {version}" for name, version in child.versions.items()))
    for shape in [(20, 4, 32, 32), (35, 20, 128, 128)] if quick else QUICK:
        steps, batch, features, size = shape
        torch.manual_seed(0)
        cell, xs = es.LSTM(features, size), torch.randn(batch, steps, features, requires_grad=True)
        took = child.ask(shape=shape)["compile_s"]
        found = in_turns(child, train(lambda x, c=cell: es.scan(c, x, backend="fused")[0], cell, xs), "jax")
        results.append({"shape": shape, "compile_s": took, **found})
        print(
            f"T{steps:<4} B{batch:<3} D{features:<5} H{size:<5} {told(found['jax'])} / {told(found['fused'])} = "
            f"{found['ratio']['fused']:.2f}; compiled in {took:.1f} s",
            flush=True,
        )
    child.close()
    verdict("jax / fused", [r["ratio"]["fused"] for r in results], each=1)
    return {**child.versions, "shapes": results}


CALLS = 100  # steps in one timed call: one alone is a few microseconds


class Session:
    """An LSTM of one row in ONNX Runtime, its state in two places that take turns; all memory is bound beforehand."""

    def __init__(self, cell: nn.Module, size: int, threads: int):
        import numpy as np
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        def iofc(value: Tensor) -> Tensor:
            i, f, g, o = value.detach().chunk(4)
            return torch.cat([i, o, f, g])

        values = {
            "W": iofc(cell.weight_ih)[None],
            "R": iofc(cell.weight_hh)[None],
            "B": torch.cat([iofc(cell.bias_ih), iofc(cell.bias_hh)])[None],
        }
        node = helper.make_node("LSTM", ["x", *values, "", "h", "c"], ["y", "hn", "cn"], hidden_size=size)

        def info(name: str) -> Any:
            axes = [1, 1, 1, size] if name == "y" else [1, 1, size]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)

        weights = [numpy_helper.from_array(value.numpy(), name) for name, value in values.items()]
        inputs, outputs = ([info(name) for name in names] for names in (["x", "h", "c"], ["y", "hn", "cn"]))
        graph = helper.make_graph([node], "step", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        def place(*shape: int) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, "float32"))

        self.x, self.y = np.zeros((1, 1, size), "float32"), place(1, 1, 1, size)
        held = ort.OrtValue.ortvalue_from_numpy(self.x)
        states = [{"h": place(1, 1, size), "c": place(1, 1, size)} for _ in range(2)]
        self.bindings = []
        for old, new in (states, states[::-1]):
            binding = self.session.io_binding()
            for name, value in {"x": held, **old}.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in {"y": self.y, "hn": new["h"], "cn": new["c"]}.items():
                binding.bind_ortvalue_output(name, value)
            self.bindings.append(binding)

    def steps(self) -> None:
        """`CALLS` of them, an even number."""
        run, (first, second) = self.session.run_with_iobinding, self.bindings
        for _ in range(CALLS // 2):
            run(first)
            run(second)


def onnx(quick: bool) -> list[Result]:
    """ONNX Runtime's LSTM, one step of one row at a time, beside `Stream`."""
    if lacks({"onnxruntime": "onnxruntime==1.31.1", "onnx": "onnx==1.23.2"}):
        return []
    results = []
    for size in (128,) if quick else (128, 512):
        for threads, name in ((1, "1 thread"), (0, "default threads")):
            torch.manual_seed(0)
            cell = es.LSTM(size, size)
            stream, session = es.Stream(cell), Session(cell, size, threads)
            x, y = torch.randn(1, size), torch.empty(1, size)
            session.x[:] = x.numpy()

            def ours(stream: es.Stream = stream, x: Tensor = x, y: Tensor = y) -> None:
                for _ in range(CALLS):
                    stream(x, y)

            session.steps()
            ours()
            torch.testing.assert_close(torch.from_numpy(session.y.numpy()).view(1, size), y, rtol=1e-4, atol=1e-5)
            found = ratio({"onnxruntime": session.steps, "Stream": ours}, rest=0.1)
            micro = {way: 1000 * found[way]["median_ms"] / CALLS for way in ("onnxruntime", "Stream")}
            results.append({"hidden": size, "threads": name, "microseconds": micro, **found})
            print(
                f"one step, H{size}, {name}: onnxruntime {micro['onnxruntime']:.2f} us / Stream "
                f"{micro['Stream']:.2f} us = {found['ratio']['Stream']:.2f}",
                flush=True,
            )
    verdict("onnxruntime / Stream", [r["ratio"]["Stream"] for r in results], each=1)
    return results

"""Shared by all tests: one thread, fixed seeds, and where real data may lie."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from quick_loops import QUICK

gc.disable()  # imports and collection make much and leave little garbage, in which searches cost a third of their time

# threads that wait by spinning would take the time of those that work: of these and of the other process that tests
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

os.environ.setdefault("EVERSTEP_CXXFLAGS", QUICK)

# waiting for the disk is a tenth of a second a run; it protects from power failures, which no test has
os.fsync = lambda descriptor: None

import torch  # noqa: E402

if not torch.accelerator.is_available():  # for each kind that is not there, PyTorch notes who asked: a millisecond
    torch.manual_seed = torch.default_generator.manual_seed
for _logger in logging.root.manager.loggerDict.values():  # those that hand nothing on are each watched by pytest
    _logger.propagate = True  # type: ignore[union-attr]
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests make tensors; for tests/test_laws.py: cuda")


def pytest_configure(config: pytest.Config) -> None:
    if (device := config.getoption("--device")) != "cpu":  # the CPU named would be another mode of torch's
        if device.partition(":")[0] != "cuda" or not torch.cuda.is_available():
            raise pytest.UsageError(f"--device {device}: expected cpu, or cuda where there is a CUDA device")
        torch.set_default_device(device)
        torch.backends.cudnn.allow_tf32 = False  # products of 10 bits are none of the laws' business


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    if drawing := sys.modules.get("hypothesis.internal.conjecture.providers"):
        # parsing our sources, to draw their constants beside its own, is a seventh of collecting in a fresh clone
        drawing.is_local_module_file = lambda path: False  # type: ignore[attr-defined]


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay until the end: no search for garbage has to look at them
    gc.set_threshold(50_000, 20, 50)  # by default, searches are a twelfth of the suite
    gc.enable()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own (`caches.py`)."""
    from caches import cache_in

    monkeypatch.setenv("EVERSTEP_CACHE", cache := cache_in(tmp_path))
    return Path(cache)


@pytest.fixture(scope="module")
def as_shipped() -> Iterator[None]:
    """Compiled code with the optimisation that users have, for a file of tests."""
    from everstep.native import kernels

    def forget() -> None:
        for known in (kernels._library, kernels._loops, kernels.kernels, kernels.has_bf16):
            known.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["EVERSTEP_CXXFLAGS"] == QUICK:
            patch.delenv("EVERSTEP_CXXFLAGS")
        forget()
        yield
    forget()


@pytest.fixture(scope="module", autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    before = _settings()
    yield
    assert _settings() == before, "a file of tests changed the environment of those after it"


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("EVERSTEP_")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _without_compiler(patch: pytest.MonkeyPatch) -> None:
    from everstep.native import toolchain

    patch.setenv("EVERSTEP_COMPILER", "none")
    patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler: for what is the same on PyTorch's kernels and loop, to which the laws hold the compiled one."""
    _without_compiler(monkeypatch)


@pytest.fixture(scope="module")
def uncompiled_module() -> Iterator[None]:
    """`uncompiled` for all tests and fixtures of a file."""
    with pytest.MonkeyPatch.context() as patch:
        _without_compiler(patch)
        yield


@pytest.fixture
def engine_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that the compiled engine has run, in order."""
    from everstep.backends.fused import backend as fused

    found: list[str] = []
    run = fused._run

    def counted(program: object, cell: object, *arguments: object) -> object:
        found.append(type(cell).__name__)
        return run(program, cell, *arguments)

    monkeypatch.setattr(fused, "_run", counted)
    return found


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("EVERSTEP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("EVERSTEP_DATA is not there")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports compare a few steps, of few n-grams."""
    monkeypatch.setattr("everstep.ship.checking.STEPS", 5)
    monkeypatch.setattr("everstep.networks.ngram_ratios.BUCKETS", 1 << 8)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed, but their pixels, a third of a second each, are left to the tests that look at them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: Path(path).write_bytes(bytes(20_000)))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a pool that are forked from one that has imported the package."""
    import apart

    monkeypatch.setattr("everstep.processes.get_context", lambda method: apart.Workers())


@pytest.fixture(scope="session")
def _beginnings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from little_data import written

    return written(tmp_path_factory.mktemp("little"))


def _with_beginnings(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr("everstep.data.text.text_files.files", lambda package: folder)


@pytest.fixture
def little_data(_beginnings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`everstep:NAME` is the beginning of the bundled file: where nothing is learned, only run."""
    _with_beginnings(monkeypatch, _beginnings)


@pytest.fixture(scope="module")
def little_data_module(_beginnings: Path) -> Iterator[None]:
    """`little_data` for all tests and fixtures of a file."""
    with pytest.MonkeyPatch.context() as patch:
        _with_beginnings(patch, _beginnings)
        yield

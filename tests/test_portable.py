"""Without what only Linux, or only POSIX systems, have: simulated here, since there is no other system to run on."""

from __future__ import annotations

import ast
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import everstep
from everstep.native import kernels, toolchain

PACKAGE = Path(everstep.__file__).parent
MODES = {kind + binary + more for kind in "rwxa" for binary in ("", "b", "t") for more in ("", "+")}

# What Windows lacks is taken away before everstep is imported, and what it refuses is refused. Other packages are
# imported first, since they were made for the system that they are on.
FOREIGN = """
import builtins, io, os, pathlib, shutil, signal, sys
import matplotlib.pyplot, numpy, pydantic, safetensors.torch, scipy.linalg, tokenizers, torch, typer, ruamel.yaml
import multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker, platform, platformdirs
import subprocess, tempfile
from filelock import lock_descriptor
try:
    import fastapi, uvicorn, websockets
except ImportError:
    pass

platform.uname()
for name in ("fcntl", "grp", "pwd", "resource", "termios", "syslog"):
    sys.modules[name] = None
for name in '''
O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_NOCTTY O_SYNC fork forkpty killpg getpgid setsid pread pwrite getuid
geteuid getgid getegid fchmod fchown chown lchown sched_getaffinity sched_setaffinity sysconf uname mkfifo nice
getloadavg posix_fallocate sync statvfs
'''.split():
    if hasattr(os, name):
        delattr(os, name)
for name in "SIGHUP SIGKILL SIGALRM SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD SIGQUIT alarm pthread_sigmask".split():
    if hasattr(signal, name):
        delattr(signal, name)

shutil._use_fd_functions = False
real_open, real_os_open, real_rename = io.open, os.open, os.rename
os.O_BINARY = 1 << 30  # a bit of no meaning here

def opened(file, *how, **more):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return real_open(file, *how, **more)

def os_opened(path, flags, *how, **more):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    ours = sys._getframe(1).f_globals.get("__name__", "").startswith("everstep")
    assert flags & os.O_BINARY or not ours or str(path) == os.devnull, f"{path} is opened for text"
    return real_os_open(path, flags & ~os.O_BINARY, *how, **more)

def renamed(source, target, **more):
    if os.path.exists(target):
        raise FileExistsError(17, "File exists", str(source))
    real_rename(source, target, **more)

builtins.open = io.open = opened
os.open, os.rename = os_opened, renamed
sys.platform = "win32"
"""


IMPORTED = """
import importlib, pkgutil, everstep
names = [m.name for m in pkgutil.walk_packages(everstep.__path__, "everstep.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
for name in dir(everstep):
    getattr(everstep, name)
print(len(names), "modules")
"""
CELLS = """
import torch, everstep as es
cell, xs = es.LayerNormLSTM(3, 5).double(), torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
got, want = (es.scan(cell, xs, backend=name)[0] for name in ("auto", "reference"))
torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
got.sum().backward()
print(es.explain(cell, xs.detach()).backend, "after", torch.get_num_threads())
wave = torch.sin(torch.arange(300.0).double()).view(1, -1, 1)
hs, _ = es.scan(es.Reservoir(1, 50, seed=1, dtype=torch.float64), wave)
ridge = es.Ridge()
ridge.add(hs[0], hs[0, :, :2])
ridge.solve(1e-6)
"""
RUNS = """
import pathlib, sys
import everstep as es
from everstep.cli.app import app
from everstep.runs.training import resume, train

out = pathlib.Path(sys.argv[1])
os.environ |= {"EVERSTEP_COMPILER": "none", "EVERSTEP_CACHE": str(out / "cache")}
text = out / "text.txt"
text.write_text("ein Maß für alle – 你好\\n" * 200, "utf-8")
changes = ["model.hidden_size=8", "model.embedding_size=8", "train.max_minutes=null", "train.max_steps=4"]
changes += [f"data.train={text}", "train.checkpoint_every=2", "train.validate_every=2"]
train("text-bytes", out / "run", overrides=changes)
resume(out / "run")
model = es.load(out / "run")
for verb in (["doctor"], ["doctor", "--json"], ["eval", str(out / "run")], ["generate", str(out / "run")]):
    try:
        app(verb, prog_name="everstep")
    except SystemExit as end:
        assert not end.code, verb
for name in ("config.yaml", "tokenizer.json", "environment.json", "scores.json", "README.md"):
    assert b"\\r" not in (out / "run" / name).read_bytes(), name
"""
DONE = "-- done --"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each script prints on such a system, in one process; of one that fails the error, the last."""
    scripts = f"\nprint({DONE!r}, flush=True)\n".join((FOREIGN, IMPORTED, CELLS, RUNS, ""))
    done = subprocess.run(
        [sys.executable, "-c", scripts, str(tmp_path_factory.mktemp("runs"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        # the name of a compiler would end in .exe there
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "CXX": shutil.which("c++") or "", "OMP_NUM_THREADS": "2"},
        timeout=300,
        check=False,
    )
    return f"{done.stdout}exit {done.returncode}".split(DONE)


def test_every_module_can_be_imported(printed: list[str]) -> None:
    assert len(printed) > 2, printed[-1]
    assert int(printed[1].split()[-2]) > 100


def test_cells_and_ridge(printed: list[str]) -> None:
    assert len(printed) > 3, printed[-1]
    if shutil.which("c++"):
        assert "fused after 2" in printed[2]
        assert printed[2].count("compiled loops run on one thread: PyTorch's OpenMP runtime is not found") == 1


def test_runs_and_the_command_line(printed: list[str]) -> None:
    assert len(printed) > 4, printed[-1]
    assert printed[4].strip() == "exit 0"


NO_FILES = {"os.open", "task.open", "other.open", "self.open"}
"""Calls of an `open` that opens no text: of a descriptor, or of a job."""


def test_text_is_utf8_with_the_same_line_ends_everywhere() -> None:
    """By name: what a locale or a system would choose differs."""
    wrong, seen = [], 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            values = [ast.unparse(value) for value in node.args]
            if name in ("read_text", "write_text"):
                seen += 1
                encoding = given.get("encoding", next(iter(values[name == "write_text" :]), "none"))
                right = encoding in ("'utf-8'", "'ascii'") and (name == "read_text" or given.get("newline") == "'\\n'")
            elif name in ("open", "fdopen") and ast.unparse(node.func) not in NO_FILES:
                mode = given.get("mode", next((value for value in values if value.strip("'") in MODES), ""))
                right = "b" in mode or "encoding" in given
            elif name in ("run", "Popen", "check_output"):
                right = not {"text", "universal_newlines"} & set(given)
            else:
                continue
            if not right:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)
    assert seen > 10


# ------------------------------------------------------------------------------------------- the compiler and OpenMP


def test_on_windows_no_compiler_is_taken_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("EVERSTEP_COMPILER", raising=False)
    assert toolchain.compiler() is None
    assert toolchain.missing() == "compiling is untested on Windows: to try it, name a C++ compiler in CXX"
    assert "-fPIC" not in toolchain.flags(toolchain.Compiler(("c++",), "c++ 1"))


def test_libraries_on_a_mac_are_asked_of_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [b"/usr/lib/libSystem.B.dylib", "/tmp/ä b/torch/lib/libomp.dylib".encode()]

    def name(k: int) -> bytes:
        return paths[k]

    loader = SimpleNamespace(_dyld_image_count=lambda: len(paths), _dyld_get_image_name=name)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loader)
    assert kernels._libraries() == [os.fsdecode(path) for path in paths]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(toolchain, "notice", lambda kind, text: found.append(text))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return found


@pytest.mark.parametrize(
    ("loaded", "taken"),
    [
        (["/x/sklearn.libs/libgomp-1.so", "/x/torch/lib/libgomp-2.so.1", "/x/libc.so"], "/x/torch/lib/libgomp-2.so.1"),
        (["/x/torch/lib/libomp.dylib", "/x/libgomp.so"], "/x/torch/lib/libomp.dylib"),
        (["/x/libiomp5.so", "/x/libgomp.so.1"], "/x/libgomp.so.1"),
        (["/x/conda/libomp.so"], "/x/conda/libomp.so"),
        (["/x/torch/lib/libgomp-missing.so", "/x/torch/lib/libomp-other.so"], None),
        (["/x/libc.so"], None),
        ([], None),
    ],
)
def test_the_runtime_of_pytorch_is_taken(
    loaded: list[str], taken: str | None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def load(path: str) -> Any:
        if "missing" in path:
            raise OSError(path)
        opened.append(path)
        names = ("GOMP_parallel",) * ("other" not in path) + ("omp_get_thread_num", "omp_get_num_threads")
        return SimpleNamespace(**dict.fromkeys(names, ctypes.c_void_p(7)))

    monkeypatch.setattr(kernels, "_libraries", lambda: loaded)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert kernels._openmp() == ((7, 7, 7) if taken else (None, None, None))
    assert taken is None or opened == [taken]
    assert [line[:33] for line in said] == ["compiled loops run on one thread:"] * (taken is None)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_the_runtime_is_found_here(said: list[str]) -> None:
    torch.zeros(1)
    assert any(Path(path).name.startswith("libtorch") for path in kernels._libraries())
    assert all(kernels._openmp()) is not bool(said)

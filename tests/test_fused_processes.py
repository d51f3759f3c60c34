"""The compiled engine in forked and other processes, without a compiler, and where no cache can be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import apart
import pytest
import torch

from everstep.native import toolchain

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


SCRIPT = """
import os, torch, everstep as es
torch.manual_seed(0)
cell, xs = es.GRUBefore(3, 5), torch.randn(2, 4, 3)
want = es.scan(cell, xs, backend="reference")[0]
"""


def _executed(code: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)  # as PyTorch begins
    exec(compile(code, "body", "exec"), {})


def process(body: str, tmp_path: Path, **environment: str) -> str:
    """What a process says that runs this after SCRIPT, and ends well."""
    told = tmp_path / "told.txt"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ended = apart.ended(apart.started(_executed, SCRIPT + body, told=told))
    assert ended == 0, told.read_text()
    return told.read_text()


def test_a_forked_child(tmp_path: Path) -> None:
    out = process(
        """
first = es.scan(cell, xs, backend="fused")[0]
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    ys = es.scan(cell, xs.requires_grad_(), backend="fused")[0]
    ys.sum().backward()
    os._exit(0 if torch.allclose(ys, want, atol=1e-6) and torch.equal(ys, first) else 3)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
        tmp_path,
    )
    assert "child 0" in out


def test_a_child_forked_while_another_thread_compiles(tmp_path: Path) -> None:
    out = process(
        """
import signal, threading
from everstep.backends.fused import backend as fused
from everstep.native import build, memory_pool as pool
taken, done = threading.Event(), threading.Event()
def hold():
    with build._lock, pool._lock, fused._lock:
        taken.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
taken.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    torch.set_num_threads(1)
    ys = es.scan(cell, xs, backend="fused")[0]
    pool.empty(xs, 1 << 18)
    os._exit(0 if torch.allclose(ys, want, atol=1e-6) else 3)
done.set()
thread.join()
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
        tmp_path,
    )
    assert "child 0" in out


def test_without_a_compiler(tmp_path: Path) -> None:
    out = process(
        """
for _ in range(3):
    assert torch.equal(es.scan(cell, xs)[0], want)
es.scan(es.LEM(3, 4), xs)
print(es.explain(cell, xs))
""",
        tmp_path,
        EVERSTEP_COMPILER="none",
    )
    assert out.count("switches compiling off. Cells run on PyTorch's kernels where it has them, else step by step") == 1
    assert "not fused: EVERSTEP_COMPILER=none switches compiling off" in out
    assert "GRUBefore(3, 5): reference" in out


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo broken 1.0;; *) echo "error: broken"; exit 1;; esac\n')
    broken.chmod(0o755)
    out = process(
        """
for _ in range(3):
    assert torch.equal(es.scan(cell, xs)[0], want)
    es.scan(es.LEM(3, 4), xs)
""",
        tmp_path,
        CXX=str(broken),
        EVERSTEP_CACHE=str(tmp_path / "cache"),
    )
    assert out.count("full log:") == 1
    assert str(tmp_path / "cache") in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    check_unwritable(tmp_path / "cache")


def test_a_cache_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_unwritable(tmp_path / "file")


def check_unwritable(cache: Path) -> None:
    body = 'assert torch.allclose(es.scan(cell, xs, backend="fused")[0], want, atol=1e-6)'
    command = [sys.executable, "-c", SCRIPT + body]  # an interpreter that ends removes its private folder
    environment = {**os.environ, "EVERSTEP_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert done.stderr.count("cannot be kept there") == 1

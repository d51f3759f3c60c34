"""Memory of a server: what it does not need goes back to the system."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from ctypes import c_size_t, c_void_p
from pathlib import Path
from typing import Any

import pytest

from everstep.cli import common, serve_verb
from everstep.ship.serving.server import give_back

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")

ASKED = """
import ctypes, os, re, sys, threading
from everstep.cli import common

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
getattr(common, sys.argv[1])()
together = threading.Barrier(6)

def ask():
    together.wait()
    libc.free(libc.malloc(100_000))
    together.wait()

threads = [threading.Thread(target=ask) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
held = libc.malloc(2 << 20)
stream = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, stream)
libc.fclose(stream)
told = open(sys.argv[2]).read()
print(told.count("<heap nr="), *re.findall(r'type="mmap" count="(\\d+)"', told))
"""
PLAIN: dict[str, Any] = {
    "threads": 1,
    "workers": 2,
    "ttl": 600.0,
    "max_sessions": 1000,
    "max_state": 512,
    "max_body": 1024,
    "max_line": 64,
    "max_tokens": 4096,
    "timeout": 60.0,
    "device": "cpu",
    "trust_code": False,
}
"""Options of `serve`, as the command line gives them."""


def arenas_and_maps(prepared: str, folder: Path) -> tuple[int, int]:
    """The arenas after six threads asked for memory at once, and the maps, while 2 MiB are held in one block."""
    command = [sys.executable, "-c", ASKED, prepared, str(folder / "told.xml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    arenas, maps = done.stdout.split()
    return int(arenas), int(maps)


def test_a_server_bounds_arenas_and_maps_large_blocks(tmp_path: Path) -> None:
    """Large blocks leave no holes when they are mapped apart; a training keeps them, since it needs them again."""
    arenas, maps = arenas_and_maps("prepare_server", tmp_path)
    more_arenas, fewer_maps = arenas_and_maps("prepare", tmp_path)
    assert (arenas, maps) == (2, fewer_maps + 1)
    assert more_arenas > 2


def test_serve_prepares_as_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When it starts, and again when it loads a run; the choices of a training never come between."""
    chosen: list[dict[int, int]] = []
    loads: list[Any] = []
    monkeypatch.setattr(common, "_mallopt", chosen.append)
    monkeypatch.setattr(common, "check_run", lambda path: None)
    monkeypatch.setattr("everstep.ship.loaded.load", lambda path, **how: path)
    monkeypatch.setattr(serve_verb, "_started", lambda runs, load, *rest: loads.append(load))
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    serve_verb.serve([tmp_path], **PLAIN)
    assert loads[0](tmp_path) == tmp_path
    common.prepare_server()
    assert len(chosen) == 3
    assert chosen[0] == chosen[1] == chosen[2]


def test_give_back_returns_holes_between_blocks_that_stay() -> None:
    """Of 1,024 blocks too small for maps of their own every eighth stays, so that `free` returns nothing."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = c_void_p, [c_size_t], [c_void_p]
    blocks = [libc.malloc(1 << 16) for _ in range(1024)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 16)
    for number, block in enumerate(blocks):
        if number % 8:
            libc.free(block)
    held = resident()
    give_back()
    assert held - resident() > 32 << 20
    for block in blocks[::8]:
        libc.free(block)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

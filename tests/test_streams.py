"""How commands end where a stream is closed, full or has no reader, without memory, and when Ctrl-C comes early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from everstep.cli.ending import NO_MEMORY, ended
from everstep.errors import DataError
from everstep.ship.serving.faults import as_fault

EVERSTEP = f"{sys.executable} -m everstep"
PRINTS = ["--help", "--version", "train --help", "recipes"]
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


@pytest.fixture(params=["buffered", "unbuffered"])
def _buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1" if request.param == "unbuffered" else "")


def shell(line: str) -> tuple[int, str, str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text, text
        assert "ignored" not in text, text
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("verb", PRINTS)
def test_a_closed_stdout_is_told(verb: str) -> None:
    assert shell(f"{EVERSTEP} {verb} >&-") == (2, "", "everstep: standard output: it is closed.\n")


@FULL
@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("verb", PRINTS)
def test_a_full_disk_is_told(verb: str) -> None:
    code, _, told = shell(f"{EVERSTEP} {verb} > /dev/full")
    assert code == 2
    assert told.startswith("everstep: ")
    assert told.endswith("No space left on device.\n")


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("verb", PRINTS)
def test_a_reader_that_has_gone_is_no_error(verb: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*EVERSTEP.split(), *verb.split()], stdout=writing, stderr=subprocess.PIPE, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_is_said_to_a_closed_stderr_is_lost(tmp_path: Path) -> None:
    assert shell(f"{EVERSTEP} eval {tmp_path} 2>&-") == (2, "", "")
    assert shell(f"{EVERSTEP} frobnicate 2>&-") == (2, "", "")
    code, out, _ = shell(f"{EVERSTEP} recipes 2>&-")
    assert (code, "text-words" in out) == (0, True)
    assert shell(f"{EVERSTEP} recipes <&- >&- 2>&-") == (2, "", "")


@FULL
@pytest.mark.usefixtures("_buffering")
def test_what_is_said_to_a_full_stderr_is_lost(tmp_path: Path) -> None:
    assert shell(f"{EVERSTEP} eval {tmp_path} 2> /dev/full")[0] == 2
    assert shell(f"{EVERSTEP} frobnicate 2> /dev/full")[0] == 2
    assert shell(f"{EVERSTEP} recipes 2> /dev/full")[0] == 0


# -------------------------------------------------------------------------------------------------------------- memory

EXABYTE = 1 << 60
ASKS: dict[str, Callable[[], object]] = {
    "Python": lambda: bytearray(EXABYTE),
    "NumPy": lambda: np.empty(EXABYTE, np.int8),
    "PyTorch": lambda: torch.empty(EXABYTE, dtype=torch.int8),
}


@pytest.mark.parametrize("whose", ASKS)
def test_memory_that_does_not_suffice_is_told(whose: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, ended():
        ASKS[whose]()
    assert (left.value.code, capsys.readouterr().err) == (2, f"everstep: {NO_MEMORY}\n")
    with pytest.raises((MemoryError, RuntimeError)) as asked:
        ASKS[whose]()
    assert as_fault(asked.value, "predict").status == 503


def test_a_library_that_finds_no_place_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), ended():
        raise ImportError("libopenblas.so: failed to map segment from shared object")
    assert capsys.readouterr().err == f"everstep: {NO_MEMORY}\n"


def test_an_error_that_quotes_the_words_is_none_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), ended():
        raise DataError("line 3 has no tab: out of memory")
    assert capsys.readouterr().err == "everstep: line 3 has no tab: out of memory\n"
    assert as_fault(DataError("line 3 has no tab: out of memory"), "predict").status == 422


# -------------------------------------------------------------------------------------------------------------- Ctrl-C

IMPORTING = """
    import builtins, os, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)
    whole = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.startswith({name!r}):
            builtins.__import__ = whole
            {how}
        return whole(name, *args, **kwargs)

    builtins.__import__ = importing
    sys.argv[1:] = {args!r}
    import everstep.cli
    everstep.cli.main()
"""
KILLED = "os.kill(os.getpid(), signal.SIGINT)"
CONVERTED = """try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError(name)"""


# the first import of all comes before anything notes the signal
IMPORTS = [("everstep.errors", KILLED)]
IMPORTS += [(name, how) for name in ("typer", "everstep.cli.app", "torch.", "torch") for how in (KILLED, CONVERTED)]


@pytest.mark.parametrize(("name", "how"), IMPORTS)
def test_ctrl_c_during_imports(name: str, how: str) -> None:
    code = textwrap.dedent(IMPORTING.format(name=name, how=how, args=["doctor"]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "everstep: interrupted.\n")
    assert done.returncode in (130, -signal.SIGINT)  # Python dies by the signal itself if it crossed an exec

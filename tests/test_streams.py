"""How commands end where a stream is closed, full or has no reader, and when Ctrl-C comes early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

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

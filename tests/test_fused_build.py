"""Compiling C++ and the cache of what was compiled: damage, other processes, no compiler, no room."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import select
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from everstep.errors import EverstepError
from everstep.native import build, processor, toolchain

SOURCE = 'extern "C" double twice(double x) { return 2 * x; }\n'
BROKEN = 'extern "C" double twice(double x) { return 2 * nothing_of_this_name; }\n'

# what compiles imports no torch, so that a process of its own starts at once
ALONE = """
import sys
from everstep.native import build, locks, toolchain
assert "torch" not in sys.modules
"""

real = toolchain.compiler()
needs_compiler = pytest.mark.skipif(real is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVERSTEP_CXXFLAGS", raising=False)
    monkeypatch.delenv("EVERSTEP_COMPILER", raising=False)
    forget(monkeypatch)
    return tmp_path / "cache" / "engine"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, nothing is known of earlier loads."""
    for name, empty in (("_loaded", {}), ("_failed", {}), ("_unusable", set())):
        monkeypatch.setattr(build, name, empty)
    monkeypatch.setattr(toolchain, "_noticed", set())


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Puts a script before the compiler; gives how often it was asked to compile."""
    assert real is not None
    log = tmp_path / "calls"
    count = f'case "$*" in *--version*) ;; *) echo call >> {shlex.quote(str(log))} ;; esac'
    body = f'{count}\nexec {shlex.join(real.command)} "$@"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "counting-c++", body)))
    return lambda: log.read_text("utf-8").count("call") if log.exists() else 0


def twice(library: ctypes.CDLL) -> float:
    library.twice.restype, library.twice.argtypes = ctypes.c_double, [ctypes.c_double]
    return float(library.twice(21.0))


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


# ---------------------------------------------------------------------------------------------------- compile and cache


@needs_compiler
def test_compile_call_and_load_again_from_the_cache(
    compiled: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build.load(SOURCE, "twice")
    assert twice(library) == 42
    assert build.load(SOURCE, "twice") is library
    forget(monkeypatch)
    assert twice(build.load(SOURCE, "twice")) == 42
    assert compiled() == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".so"]
    assert set(json.loads(only(cache, "*.json").read_text("utf-8"))) == {
        "sha256", "name", "compiler", "flags", "created"
    }  # fmt: skip


@needs_compiler
def test_the_simd_pragma_is_heeded_and_nan_and_infinity_go_through() -> None:
    source = """
    #if defined(_OPENMP) || defined(__FAST_MATH__) || __FINITE_MATH_ONLY__
    #error "neither an OpenMP runtime nor arithmetic without NaN"
    #endif
    extern "C" void add(const float* a, const float* b, float* c, long n) {
    #pragma omp simd
        for (long i = 0; i < n; i++) c[i] = a[i] + b[i];
    }
    """
    library = build.load(source, "add")
    numbers = ctypes.c_float * 3
    inf, nan = float("inf"), float("nan")
    total = numbers()
    library.add.argtypes = [numbers, numbers, numbers, ctypes.c_long]
    library.add(numbers(1, inf, nan), numbers(2, 1, 1), total, 3)
    assert str(list(total)) == "[3.0, inf, nan]"
    assert not any("fast-math" in flag or "finite" in flag or flag == "-fopenmp" for flag in flags())


@needs_compiler
@pytest.mark.parametrize("damage", ["another byte", "cut", "not a library", "gone"])
def test_a_damaged_library_is_built_again(
    damage: str, compiled: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(SOURCE, "twice")
    library = only(cache, "*.so")
    content = library.read_bytes()
    library.unlink()  # not written in place: it is mapped
    damaged = {
        "another byte": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:100], "not a library": b"text"
    }  # fmt: skip
    if damage in damaged:
        library.write_bytes(damaged[damage])
    forget(monkeypatch)
    assert twice(build.load(SOURCE, "twice")) == 42
    assert compiled() == 2
    assert library.read_bytes() == content


@needs_compiler
@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"sha256": 1}'])
def test_a_library_without_a_valid_sidecar_is_built_again(
    text: str | None, compiled: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(SOURCE, "twice")
    sidecar = only(cache, "*.json")
    whole = json.loads(sidecar.read_text("utf-8"))
    sidecar.unlink() if text is None else sidecar.write_text(text, "utf-8")
    assert build.entries() == []
    forget(monkeypatch)
    assert twice(build.load(SOURCE, "twice")) == 42
    assert compiled() == 2
    assert json.loads(sidecar.read_text("utf-8"))["sha256"] == whole["sha256"]


@needs_compiler
def test_a_library_that_cannot_be_loaded_here_is_built_again(
    compiled: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with one that was built on another system: whole, and useless."""
    build.load(SOURCE, "twice")
    library, sidecar = only(cache, "*.so"), only(cache, "*.json")
    library.unlink()
    library.write_bytes(b"not for this system")
    sidecar.write_text(
        json.dumps({**json.loads(sidecar.read_text("utf-8")), "sha256": build._digest(library)}), "utf-8"
    )
    forget(monkeypatch)
    assert twice(build.load(SOURCE, "twice")) == 42
    assert compiled() == 2


@needs_compiler
def test_other_flags_another_source_or_another_processor_make_another_entry(
    compiled: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(SOURCE, "twice")
    build.load(f"{SOURCE}\n", "twice")
    monkeypatch.setenv("EVERSTEP_CXXFLAGS", "-DMORE='a b'")
    assert flags()[-1] == "-DMORE=a b"
    build.load(SOURCE, "twice")
    monkeypatch.setattr(processor, "facts", lambda: {"model name": "another"})
    build.load(SOURCE, "twice")
    assert compiled() == len(list(cache.glob("twice-*.so"))) == len(build.entries()) == 4


def test_a_flag_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CXXFLAGS", "-D'open")
    with pytest.raises(toolchain.BuildError, match="EVERSTEP_CXXFLAGS=-D'open"):
        toolchain.flags(toolchain.Compiler(("c++",), "c++ 1"))


@needs_compiler
def test_any_name_will_do(cache: Path) -> None:
    assert twice(build.load(SOURCE, "../Zoneout(LSTM) é")) == 42
    assert only(cache, "*.so").name.startswith(".._Zoneout_LSTM__")


# ---------------------------------------------------------------------------------------------------- choosing compiler


def flags() -> tuple[str, ...]:
    assert real is not None
    return toolchain.flags(real)


def test_the_compiler_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    assert toolchain.compiler() is None
    with pytest.raises(toolchain.BuildError, match="EVERSTEP_COMPILER=none switches"):
        build.load(SOURCE, "twice")
    assert issubclass(toolchain.BuildError, EverstepError)


@pytest.mark.parametrize("named", ["/of/this/name/there-is-none", "false", "an 'open quote"])
def test_a_compiler_that_does_not_run_is_skipped_and_said_once(
    named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", named)
    found = [toolchain.compiler(), toolchain.compiler()]
    assert all(one is None or one.command[0] != named for one in found)
    assert ["does not run" in record.getMessage() for record in caplog.records] == [True]


def test_order_and_arguments_of_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    assert toolchain.compiler() is None
    for name in ("clang++", "g++", "c++"):
        script(tmp_path / name, f"echo {name} 1.2.3")
        monkeypatch.setenv("PATH", str(tmp_path))
        toolchain._version.cache_clear()
        assert toolchain.compiler() == toolchain.Compiler((name,), f"{name} 1.2.3")
    monkeypatch.setenv("CXX", "g++ -B 'a folder'")
    found = toolchain.compiler()
    assert found == toolchain.Compiler(("g++", "-B", "a folder"), "g++ 1.2.3")
    assert str(found) == "g++ 1.2.3"
    toolchain._version.cache_clear()


def test_the_package_ziglang_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__init__.py").write_text("")
    (tmp_path / "ziglang" / "__main__.py").write_text("print('clang version 20.1.2')")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    toolchain._version.cache_clear()
    zig = toolchain.compiler()
    toolchain._version.cache_clear()
    assert zig == toolchain.Compiler((sys.executable, "-m", "ziglang", "c++"), "clang version 20.1.2")
    assert str(zig).endswith("-m ziglang c++: clang version 20.1.2")
    assert toolchain.target(zig) == ("-mcpu=native",)


def test_the_processor_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, zig = (
        toolchain.Compiler(("c++",), "c++ 1"),
        toolchain.Compiler(("python", "-m", "ziglang", "c++"), "clang 20"),
    )
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for features, expected in (
        ("sse2 avx2", ("-march=native",)),
        ("avx2 avx512f", ("-march=native", "-mprefer-vector-width=512")),
    ):
        monkeypatch.setattr(processor, "instructions", lambda features=features: frozenset(features.split()))
        assert toolchain.target(plain) == expected
        assert toolchain.target(zig) == ("-mcpu=native",)
    monkeypatch.setattr(processor, "instructions", lambda: frozenset({"avx2"}))
    for held, name in (("avx2", "haswell"), ("default", "x86-64"), ("avx512", "native"), ("", "native")):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", held)
        assert toolchain.target(plain) == (f"-march={name}",)
        assert toolchain.target(zig) == (f"-mcpu={name.replace('-', '_')}",)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # of another family of processors, what PyTorch has by itself
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert toolchain.target(plain) == ("-mcpu=native",)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build.folder() == tmp_path / "cache" / "engine"
    monkeypatch.setenv("EVERSTEP_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.folder() == tmp_path / "xdg" / "everstep" / "engine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.folder() == tmp_path / ".cache" / "everstep" / "engine"

    def homeless(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", homeless)
    assert not build.folder().parent.is_dir()
    assert build.entries() == []


# -------------------------------------------------------------------------------------------------------------- no room


@pytest.fixture(params=["below a file", "read-only"])
def no_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "closed"
    if request.param == "below a file":
        folder.write_text("a file")
    else:
        folder.mkdir(mode=0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
    monkeypatch.setenv("EVERSTEP_CACHE", str(folder / "below"))
    return folder


@needs_compiler
def test_without_a_cache_a_private_folder_is_used_with_one_notice(
    no_cache: Path, caplog: pytest.LogCaptureFixture, compiled: Callable[[], int]
) -> None:
    library = build.load(SOURCE, "twice")
    assert twice(library) == 42
    assert build.load(SOURCE, "twice") is library
    assert twice(build.load(f"{SOURCE} ", "twice")) == 42
    assert compiled() == 2
    (record,) = caplog.records
    assert record.name == "everstep"
    assert f"{no_cache}/below/engine: compiled steps cannot be kept there" in record.getMessage()
    assert "EVERSTEP_CACHE" in record.getMessage()
    assert (build.entries(), build.clear()) == ([], 0)


@needs_compiler
def test_a_source_that_fails_without_a_cache_has_its_log_in_the_private_folder(
    no_cache: Path, compiled: Callable[[], int]
) -> None:
    with pytest.raises(toolchain.BuildError, match="nothing_of_this_name") as raised:
        build.load(BROKEN, "broken")
    assert logged(raised.value).is_relative_to(build._private())
    assert compiled() == 1


def test_the_private_folder_goes_with_the_process(tmp_path: Path) -> None:
    code = f"""{ALONE}
import os
print(build._private())
if os.fork() == 0:
    raise SystemExit
os.wait()
assert build._private().is_dir()
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith(str(tmp_path))
    assert list(tmp_path.glob("everstep-engine-*")) == []


@needs_compiler
@pytest.mark.parametrize("says", ['echo "fatal error: No space left on device"; ', ""], ids=["told", "without a word"])
def test_a_full_disk_while_compiling_leads_to_the_private_folder(
    says: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert real is not None
    body = f'case "$*" in *{cache}*) {says}exit 1 ;; esac\nexec {shlex.join(real.command)} "$@"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "full-c++", body)))
    if not says:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(build.shutil, "disk_usage", lambda place: usage._replace(free=1 << 10))
    assert twice(build.load(SOURCE, "twice")) == 42
    assert "No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_library_that_cannot_be_kept_is_used_all_the_same(
    compiled: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "replace", full)
    assert twice(build.load(SOURCE, "twice")) == 42
    assert compiled() == 1
    assert "No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- failures


def logged(error: toolchain.BuildError) -> Path:
    return Path(str(error).partition("full log: ")[2].partition(", with")[0])


@needs_compiler
def test_a_source_that_fails_is_kept_with_its_log_and_not_tried_again(compiled: Callable[[], int], cache: Path) -> None:
    with pytest.raises(toolchain.BuildError, match="nothing_of_this_name") as first:
        build.load(BROKEN, "broken")
    found = toolchain.compiler()
    assert found is not None
    assert found.version in str(first.value)
    assert "broken.cpp:1:" in str(first.value)
    log = logged(first.value)
    assert log.parent == cache / "failed"
    assert "nothing_of_this_name" in log.read_text("utf-8")
    assert "-std=gnu++17" in log.read_text("utf-8")
    assert log.with_suffix(".cpp").read_text("utf-8") == BROKEN
    with pytest.raises(toolchain.BuildError) as second:
        build.load(BROKEN, "broken")
    assert str(second.value) == str(first.value)
    assert compiled() == 1
    assert list(cache.glob("*.so")) == []


@needs_compiler
def test_a_library_that_lacks_a_symbol_is_an_error_without_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(toolchain.BuildError, match="lacking"):
        # called before the library is of use, so that the missing name shows when it is loaded
        build.load('extern "C" double lacking();\ndouble made = lacking();\n', "lacking")
    assert caplog.records == []


def test_a_compiler_that_hangs_is_stopped_where_there_are_no_process_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'case "$*" in *--version*) echo slow 1; exit ;; esac\nexec sleep 60'
    monkeypatch.setenv("CXX", str(script(tmp_path / "slow-c++", body)))
    monkeypatch.setattr(build, "TIMEOUT", 0.2)
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(toolchain.BuildError, match=r"stopped after 0\.2 s"):
        build.load(SOURCE, "twice")


def test_a_compiler_that_hangs_is_stopped_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    body = f'case "$*" in *--version*) echo slow 1; exit ;; esac\n(echo started; exec sleep 60) > {fifo} &\nwait'
    monkeypatch.setenv("CXX", str(script(tmp_path / "slow-c++", body)))
    monkeypatch.setattr(build, "TIMEOUT", 1.0)
    try:
        with pytest.raises(toolchain.BuildError, match="stopped after 1 s"):
            build.load(SOURCE, "twice")
        assert os.read(started, 100) == b"started\n"
        assert select.select([started], [], [], 10)[0], "what the compiler started still runs"
        assert os.read(started, 100) == b""
    finally:
        os.close(started)


def test_a_compiler_that_vanishes_or_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = script(tmp_path / "idle-c++", "echo idle 1")
    monkeypatch.setenv("CXX", str(idle))
    with pytest.raises(toolchain.BuildError, match=r"idle 1.*wrote no library"):
        build.load(SOURCE, "twice")
    script(idle, "echo idle 1; exit 3")
    with pytest.raises(toolchain.BuildError, match="exit status 3"):
        build.load(f"{SOURCE} ", "twice")
    monkeypatch.setattr(toolchain, "compiler", lambda: toolchain.Compiler((str(tmp_path / "gone"),), "gone 1"))
    with pytest.raises(toolchain.BuildError, match="does not start"):
        build.load(SOURCE, "twice")


# ----------------------------------------------------------------------------------------------------- several at once


@needs_compiler
def test_four_processes_at_once(cache: Path) -> None:
    code = f"""{ALONE}
import ctypes
print("ready", flush=True)
input()
library = build.load({SOURCE!r}, "twice")
library.twice.restype, library.twice.argtypes = ctypes.c_double, [ctypes.c_double]
print(library.twice(21.0))
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["42.0\n"] * 4
    assert len(build.entries()) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".so"]


@needs_compiler
def test_two_threads_at_once_compile_once(compiled: Callable[[], int]) -> None:
    found: list[ctypes.CDLL] = []
    barrier = threading.Barrier(2)

    def work() -> None:
        barrier.wait()
        found.append(build.load(SOURCE, "twice"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]
    assert compiled() == 1


# ---------------------------------------------------------------------------------------------------------------- clear


@needs_compiler
def test_entries_and_clear(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (build.entries(), build.clear()) == ([], 0)
    library = build.load(SOURCE, "twice")
    with pytest.raises(toolchain.BuildError):
        build.load(BROKEN, "broken")
    (entry,) = build.entries()
    assert (entry.name, entry.created[-6:]) == ("twice", "+00:00")
    assert entry.bytes == sum(path.stat().st_size for path in cache.glob("twice-*"))
    (cache / "notes.json").write_text("not ours")
    busy, dead = cache / ".build-busy", cache / ".build-dead"
    busy.mkdir()
    dead.mkdir()
    os.utime(dead, (0, 0))
    failed = sum(path.stat().st_size for path in (cache / "failed").iterdir())
    assert build.clear() == entry.bytes + failed
    assert sorted(path.name for path in cache.iterdir()) == [".build-busy", "failed", "notes.json"]
    assert build.entries() == []
    assert twice(library) == 42
    assert build.load(SOURCE, "twice") is library
    forget(monkeypatch)
    assert twice(build.load(SOURCE, "twice")) == 42
    shutil.rmtree(cache)
    assert build.clear() == 0


def test_a_notice_is_given_once_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("one", "two", "one"):
        toolchain.notice(kind, f"about {kind}")
    assert [record.getMessage() for record in caplog.records] == ["about one", "about two"]

"""Compilation of C++ source to a loaded library, with a cache on disk.

The source has a plain C interface, so that no PyTorch code is compiled, and a step takes about a second, once per
machine. Libraries are stored in the folder `engine` of the cache and verified by their digest at each load.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from everstep import __version__
from everstep.native import processor, toolchain
from everstep.native.locks import new_lock
from everstep.native.toolchain import BuildError, Compiler, notice
from everstep.storage.cache_folder import cache_folder
from everstep.storage.reading import open_regular, parse_json, read_small

TIMEOUT = 300.0
"""Seconds after which the compiler is considered to hang."""

_STALE_SECONDS = 3600
_KEPT = re.compile(r"[\w.]+-[0-9a-f]{24}\.(so|json|cpp|log)", re.ASCII)
_ROOM = 1 << 20
"""Least free bytes; with less a compiler may fail without a reason."""
_DISK_FULL = ("No space left on device", "Disk quota exceeded")
_lock = new_lock()
_locks: dict[str, threading.RLock] = {}
_loaded: dict[str, ctypes.CDLL] = {}
_failed: dict[str, str] = {}
_unusable: set[Path] = set()


@dataclass(frozen=True)
class CachedLibrary:
    """A library in the cache; `created` is in UTC, as ISO 8601."""

    name: str
    bytes: int
    created: str


@dataclass(frozen=True)
class _Job:
    source: str
    name: str
    key: str
    compiler: Compiler
    flags: tuple[str, ...]
    symbols: tuple[str, ...]

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.key[:24]}"


@dataclass(frozen=True)
class _Sidecar:
    """Metadata stored beside a library. A library without it, or with another digest, is not used."""

    sha256: str
    name: str
    compiler: str
    flags: list[str]
    created: str


# ----------------------------------------------------------------------------------------------------------- the cache


def folder() -> Path:
    """The folder of compiled libraries: `engine` in the cache folder."""
    try:
        return cache_folder() / "engine"
    except RuntimeError:  # a user without a home; no folder can be created below a file, so nothing is cached
        return Path(os.devnull) / "engine"


def entries() -> list[CachedLibrary]:
    """The libraries in the cache, by name."""
    found = []
    for library in sorted(path for path in _kept() if path.suffix == ".so"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            beside = _sidecar(library)
            size = library.stat().st_size + library.with_suffix(".json").stat().st_size
            found.append(CachedLibrary(beside.name, size, beside.created))
    return found


def clear() -> int:
    """Remove all libraries and the logs of failed ones; returns the bytes freed.

    Libraries that a process has loaded keep working.
    """
    _sweep(folder())
    freed = 0
    for path in _kept():
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _kept() -> list[Path]:
    """The files in the cache that belong to everstep."""
    place = folder()
    return [path for part in (place, place / "failed") for path in part.glob("*") if _KEPT.fullmatch(path.name)]


def _sweep(place: Path) -> None:
    """Remove old remains of killed compilations."""
    for aside in place.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - aside.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(aside, ignore_errors=True)


def _own(path: Path) -> bool:
    """Whether only this user (and root) can have written a file, or created files in a folder.

    Code is loaded from there; in a cache that others can write to, it might be theirs.
    """
    if not hasattr(os, "geteuid"):  # Windows has other owners and modes
        return True
    found = path.stat()
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _make_own(place: Path) -> None:
    """Create a folder, or revoke the write permission of others.

    Raises:
        OSError: it belongs to another user.
    """
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _own(place) and place.stat().st_uid == os.geteuid():
        place.chmod(stat.S_IMODE(place.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    if not _own(place):
        raise PermissionError(errno.EPERM, "the folder belongs to another user, whose code would be run", str(place))


def _sidecar(library: Path) -> _Sidecar:
    return _Sidecar(**parse_json(read_small(library.with_suffix(".json"), _ROOM)))


def _digest(path: Path) -> str:
    with open(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _private() -> Path:
    """A temporary folder, removed when this process ends."""
    place, owner = Path(tempfile.mkdtemp(prefix="everstep-engine-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a fork, which ends first
            shutil.rmtree(place, ignore_errors=True)

    atexit.register(remove)
    return place


# ------------------------------------------------------------------------------------------------------------- loading


def load(source: str, name: str, symbols: Sequence[str] = ()) -> ctypes.CDLL:
    """The library of `source`: already loaded, else from the cache, else compiled now.

    Args:
        source: C++17 with `extern "C"` functions.
        name: prefix of its file names; it need not be unique.
        symbols: functions that the source defines; a cached library that lacks one is damaged, and rebuilt.

    If the cache cannot be written to, a temporary folder is used, with one notice.

    Raises:
        BuildError: there is no compiler, or it failed. A source that failed is not compiled again in this process.
    """
    job = _job(source, name, symbols)
    key = job.key
    if (known := _loaded.get(key)) is not None:  # without a lock: another source may be compiling
        return known
    with _lock:
        own = _locks.setdefault(key, new_lock())
    with own:
        if key not in _loaded:
            _loaded[key] = _obtain(job)
        return _loaded[key]


def _job(source: str, name: str, symbols: Sequence[str] = ()) -> _Job:
    """What has to be compiled; see `load`."""
    tool = toolchain.compiler()
    if tool is None:
        raise BuildError(toolchain.missing())
    options = toolchain.flags(tool)
    basis = [source, tool.command, tool.version, options, processor.facts(), __version__]
    key = hashlib.sha256(json.dumps(basis, allow_nan=False).encode()).hexdigest()
    safe_name = re.sub(r"[^\w.]", "_", name, flags=re.ASCII)[:60] or "step"
    return _Job(source, safe_name, key, tool, options, tuple(symbols))


def _obtain(job: _Job) -> ctypes.CDLL:
    if job.key in _failed:
        raise BuildError(_failed[job.key])
    found = _cached(job)
    if found is not None:
        return found
    try:
        return _built(job)
    except BuildError as error:
        _failed[job.key] = str(error)
        raise


def _cached(job: _Job) -> ctypes.CDLL | None:
    """The library in the cache, if no other user can have written it; a damaged one is removed."""
    library = folder() / f"{job.stem}.so"
    try:
        if not _own(library.parent):
            return None
    except OSError:  # the folder does not exist yet
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        beside = _sidecar(library)
        if _own(library) and beside.sha256 == _digest(library):
            loaded = ctypes.CDLL(str(library))
            for symbol in job.symbols:
                getattr(loaded, symbol)
            return loaded
    for path in (library.with_suffix(".json"), library):
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _built(job: _Job) -> ctypes.CDLL:
    """Compile in the cache, or in a private folder if the cache is not usable."""
    place = folder()
    reason: OSError | None = None
    if place not in _unusable:
        try:
            return _build_in(place, job)
        except OSError as error:
            reason = error
    try:
        library = _build_in(_private(), job)
    except OSError as error:
        raise BuildError(f"{job.compiler}: {job.name} cannot be compiled here: {error}") from error
    if reason is not None:  # only now: if the library loads from nowhere, the folder is not the reason
        _unusable.add(place)
        _cannot_keep(place, reason)
    return library


def _build_in(place: Path, job: _Job) -> ctypes.CDLL:
    _make_own(place)
    _sweep(place)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=place, ignore_cleanup_errors=True) as aside:
        library = _compiled(job, Path(aside), place)
        # loaded before it is moved, so that other processes cannot replace or remove it
        loaded = ctypes.CDLL(str(library))
        try:
            _publish(library, job, place)
        except OSError as error:
            _cannot_keep(place, error)
        return loaded


def _publish(library: Path, job: _Job, place: Path) -> None:
    """Move a library into the cache, its sidecar last, so that no process sees a partial entry."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    beside = _Sidecar(_digest(library), job.name, str(job.compiler), list(job.flags), created)
    sidecar = library.with_suffix(".json")
    sidecar.write_text(json.dumps(asdict(beside), indent=1, allow_nan=False), "utf-8", newline="\n")
    library.chmod(0o755)  # independent of the umask, see `_own`
    sidecar.chmod(0o644)
    os.replace(library, place / f"{job.stem}.so")
    os.replace(sidecar, place / f"{job.stem}.json")


def _cannot_keep(place: Path, error: OSError) -> None:
    notice(
        "cache",
        f"{place}: compiled steps cannot be kept there ({error.strerror or error}), so every process compiles anew; "
        "make room, or set EVERSTEP_CACHE to a folder that can be written to.",
    )


# ----------------------------------------------------------------------------------------------------------- compiling


def _compiled(job: _Job, aside: Path, place: Path) -> Path:
    """Compile in the folder `aside`.

    Raises:
        BuildError: the compiler failed; source and log are stored in `place`.
        OSError: the folder cannot be written to, or is full.
    """
    source, library, log = (aside / f"{job.name}.{ending}" for ending in ("cpp", "so", "log"))
    source.write_text(job.source, "utf-8", newline="\n")
    # keeps the random folder name out of the library, so that builds are reproducible
    same = f"-ffile-prefix-map={aside}=."
    command = [*job.compiler.command, *job.flags, same, str(source), "-o", str(library)]
    trouble = _run(command, log, aside)
    if not trouble and library.is_file():
        return library
    output = log.read_text("utf-8", "replace").replace(f"{aside}{os.sep}", "")
    if any(sign in output for sign in _DISK_FULL) or shutil.disk_usage(aside).free < _ROOM:  # messages need space too
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
    lines = [line for line in output.splitlines() if "error" in line] or output.splitlines()
    log.write_text(f"{shlex.join(command)}\n{trouble or 'wrote no library'}\n\n{output}", "utf-8", newline="\n")
    kept = place / "failed" / f"{job.stem}.log"
    kept.parent.mkdir(exist_ok=True)
    os.replace(source, kept.with_suffix(".cpp"))
    os.replace(log, kept)
    shown = "".join(f"\n  {line}" for line in lines[:3])
    raise BuildError(
        f"{job.compiler}: could not compile {job.name} ({trouble or 'wrote no library'}){shown}\n"
        f"  full log: {kept}, with the source beside it"
    )


def _run(command: list[str], log: Path, aside: Path) -> str:
    """Run the compiler with its output in `log`; returns the reason of a failure, or ""."""
    # English messages, since they are searched; temporary files inside the folder, which is removed
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(aside)}
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
        except OSError as error:
            return f"it does not start: {error.strerror or error}"
        late = threading.Event()

        def stop() -> None:
            late.set()
            _end(process)

        limit = threading.Timer(TIMEOUT, stop)  # `wait(TIMEOUT)` would look only every 50 ms whether it has ended
        limit.daemon = True
        limit.start()
        with process:
            try:
                status = process.wait()
            except BaseException:
                _end(process)
                raise
            finally:
                limit.cancel()
    if late.is_set():
        return f"stopped after {TIMEOUT:g} s"
    return f"exit status {status}" if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a compiler and, with process groups, its children, which would survive it."""
    with contextlib.suppress(OSError):  # the process has just ended
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()

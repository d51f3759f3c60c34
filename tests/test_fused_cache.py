"""The cache of compiled steps: nobody's code but one's own is loaded from it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from everstep.native import build, toolchain

SOURCE = 'extern "C" int mine() { return 1; }'
THEIRS = 'extern "C" int mine() { return 2; }'

pytestmark = [
    pytest.mark.skipif(toolchain.compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX"),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path))
    return tmp_path / "engine"


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_loaded", "_failed", "_locks"):
        monkeypatch.setattr(build, name, {})
    monkeypatch.setattr(build, "_unusable", set())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the compiler has run."""
    runs: list[Path] = []
    real = build._compiled
    monkeypatch.setattr(build, "_compiled", lambda job, aside, place: (runs.append(place), real(job, aside, place))[1])
    return lambda: len(runs)


def forget() -> None:
    build._loaded.clear()


def loaded() -> int:
    forget()
    return int(build.load(SOURCE, "mine", ["mine"]).mine())


def planted(cache: Path) -> Path:
    """The library in the cache, replaced by another one with a sidecar that fits it."""
    (library,) = cache.glob("mine-*.so")
    source = cache.parent / "theirs.cpp"
    source.write_text(THEIRS)
    tool = toolchain.compiler()
    assert tool is not None
    library.unlink()
    subprocess.run([*tool.command, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    library.chmod(0o755)
    sidecar = library.with_suffix(".json")
    beside = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**beside, "sha256": build._digest(library)}))
    return library


def someone_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `path` another user's: in truth where this is root, else by what `stat` says of it."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        real = Path.stat

        def stat(self: Path, **options: bool) -> os.stat_result:
            found = real(self, **options)
            return os.stat_result((*found[:4], 12345, *found[5:10])) if self == path else found

        monkeypatch.setattr(Path, "stat", stat)


def test_what_oneself_put_there_is_loaded(cache: Path, compiled: Callable[[], int]) -> None:
    assert loaded() == 1
    planted(cache)
    assert loaded() == 2  # so that the tests below test something
    assert compiled() == 1


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_library_that_others_can_write_to_is_made_again(
    mode: int, cache: Path, compiled: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded() == 1
    planted(cache).chmod(mode)
    assert loaded() == 1
    assert loaded() == 1
    assert compiled() == 2


def test_a_library_of_another_user_is_made_again(
    cache: Path, compiled: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded() == 1
    with monkeypatch.context() as patch:
        someone_else(planted(cache), patch)
        assert loaded() == 1
    assert loaded() == 1
    assert compiled() == 2


def test_a_folder_of_another_user_is_not_used(
    cache: Path, compiled: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded() == 1
    library = planted(cache)
    before = library.read_bytes()
    monkeypatch.setattr(toolchain, "_noticed", set(), raising=False)
    someone_else(cache, monkeypatch)
    assert loaded() == 1
    assert compiled() == 2
    assert library.read_bytes() == before
    assert not list(cache.glob(".build-*"))


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_ones_own_folder_that_others_can_write_to_is_closed_to_them_and_filled_anew(
    mode: int, cache: Path, compiled: Callable[[], int]
) -> None:
    assert loaded() == 1
    planted(cache)
    cache.chmod(mode)
    assert loaded() == 1
    assert not cache.stat().st_mode & 0o022
    assert loaded() == 1
    assert compiled() == 2


def test_whatever_the_umask_what_is_kept_is_ones_own(cache: Path, compiled: Callable[[], int]) -> None:
    before = os.umask(0)
    try:
        assert loaded() == 1
    finally:
        os.umask(before)
    assert loaded() == 1
    assert compiled() == 1
    assert not any(path.stat().st_mode & 0o022 for path in (cache, *cache.iterdir()))


def test_a_library_without_its_symbols_is_made_again(cache: Path, compiled: Callable[[], int]) -> None:
    assert loaded() == 1
    global THEIRS
    whole, THEIRS = THEIRS, 'extern "C" int other() { return 2; }'
    try:
        planted(cache)
    finally:
        THEIRS = whole
    assert loaded() == 1
    assert compiled() == 2


@pytest.mark.parametrize("ending", [".so", ".json"])
@pytest.mark.parametrize("kind", ["pipe", "huge", "nested"])
def test_files_that_are_none_of_ours_are_made_again(
    ending: str, kind: str, cache: Path, compiled: Callable[[], int]
) -> None:
    assert loaded() == 1
    (library,) = cache.glob("mine-*.so")
    path = library.with_suffix(ending)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge" and ending == ".json":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(b"[" * 200_000)
    assert loaded() == 1
    assert compiled() == 2
    assert isinstance(build.load(SOURCE, "mine", ["mine"]), ctypes.CDLL)

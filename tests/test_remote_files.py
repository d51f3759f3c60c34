"""Data at URLs: what is copied, when it is copied again, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import pytest

import everstep as es
from everstep.data import expand
from everstep.data.text import remote_files
from everstep.data.text.remote_files import fetched
from everstep.errors import DataError, RunError
from everstep.runs.text_data import absolute_path


@pytest.fixture(autouse=True)
def _own_files(own_cache: Path) -> None:
    fsspec.filesystem("memory").store.clear()
    remote_files._looked_up.cache_clear()


def put(name: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"/{name}", content)


def test_files_are_copied_once_and_again_when_they_change() -> None:
    put("a/one.txt", b"one\n")
    put("a/two.txt.gz", gzip.compress(b"two\n"))
    put("a/b/three.txt", b"three\n")
    one, two = expand("memory://a/*.txt*")
    assert [one.name, two.name] == ["one.txt", "two.txt.gz"]
    assert one.read_bytes() == b"one\n"
    assert expand(["memory://a/one.txt", "memory://a/*.txt"]) == [one]
    put("a/one.txt", b"another one\n")
    assert expand("memory://a/one.txt") == [one], "within a process, a name has one content"
    remote_files._looked_up.cache_clear()
    (changed,) = expand("memory://a/one.txt")
    assert changed.read_bytes() == b"another one\n"
    changed.unlink()
    assert expand("memory://a/one.txt")[0].read_bytes() == b"another one\n"


def test_globs_at_urls_skip_empty_files_as_others_do() -> None:
    put("a/one.txt", b"one\n")
    put("a/two.txt", b"")
    assert [path.name for path in expand("memory://a/*.txt")] == ["one.txt"]
    with pytest.raises(DataError, match=r"memory://a/two.txt: matches 1 empty file"):
        expand("memory://a/two.txt")


def test_a_file_url_is_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text\n")
    assert expand(f"file://{tmp_path}/x.txt") == [tmp_path / "x.txt"]


def test_urls_stay_as_written_in_a_recipe() -> None:
    assert absolute_path("s3://bucket/x.txt") == "s3://bucket/x.txt"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://a/none.txt", "memory://a/none.txt: there is no such file"),
        ("memory://a/*.csv", r"memory://a/\*.csv: no file matches"),
        ("memory://a", r"expected a file, got a folder; name its files: memory://a/\*"),
        ("nowhere://a", "nowhere://a: cannot be read .*Protocol not known: nowhere"),
    ],
)
def test_what_cannot_be_read_is_refused(url: str, expected: str) -> None:
    put("a/one.txt", b"one\n")
    with pytest.raises(DataError, match=expected):
        fetched(url)


def test_a_failed_copy_leaves_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **options: object) -> None:
        raise ConnectionError("the line went dead")

    put("one.txt", b"one\n")
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", broken)
    with pytest.raises(DataError, match=r"memory://one\.txt: cannot be copied to .*the line went dead"):
        fetched("memory://one.txt")
    assert not list((own_cache / "fetched").iterdir())


def test_a_run_learns_from_a_url_but_is_not_written_to_one(tmp_path: Path) -> None:
    put("text.txt", b"the cat sat on the mat\n" * 60)
    small = ["data.train=memory://text.txt", "model.hidden_size=4", "train.max_steps=2", "train.batch_size=2"]
    run = es.train("text-chars", tmp_path / "run", lambda line: None, overrides=small)
    assert run.recipe.data.train == "memory://text.txt"
    for refused in (
        lambda: es.train("text-chars", "memory://run", overrides=small),
        lambda: es.load("s3://bucket/run"),
    ):
        with pytest.raises(RunError, match="a run is a folder of a file system"):
            refused()

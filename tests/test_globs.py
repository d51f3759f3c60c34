"""Globs over folders as they are: empty files among the others are left out, counted and said."""

from __future__ import annotations

import gzip
import lzma
from codecs import BOM_UTF8, BOM_UTF16_LE
from pathlib import Path

import pytest

import everstep as es
from everstep.data.text.text_files import empty_matches, expand, read_blocks
from everstep.errors import DataError

TEXT = "def f(x):\n    return x\n" * 30
EMPTY = {
    "a/__init__.py": b"",
    "a/mark.py": BOM_UTF8,
    "a/wide.py": BOM_UTF16_LE,
    "b/none.gz": gzip.compress(b""),
    "b/none.xz": lzma.compress(b""),
    "b/mark.gz": gzip.compress(BOM_UTF8),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {"a/x.py": TEXT.encode(), "b/y.gz": gzip.compress(TEXT.encode()), "b/short.py": b"x", **EMPTY}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b" / "folder.py").mkdir()
    return tmp_path


def test_empty_files_of_a_glob_are_left_out(tree: Path) -> None:
    paths = expand(f"{tree}/**/*.*")
    assert [path.name for path in paths] == ["x.py", "short.py", "y.gz"]
    assert sorted(str(path.relative_to(tree)) for path in empty_matches([f"{tree}/**/*.*", str(paths[0])])) == sorted(
        EMPTY
    )
    assert "".join(read_blocks(paths)) == TEXT + "x" + TEXT


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_file_that_is_named_is_an_error(tree: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is empty|holds no text|begin with|byte"):
        list(read_blocks(expand([f"{tree}/a/x.py", str(tree / name)])))


def test_a_glob_of_empty_files_is_an_error(tree: Path) -> None:
    with pytest.raises(DataError, match=r"none\.\*: matches 2 empty files and no other"):
        expand(f"{tree}/b/none.*")


def test_damaged_archives_are_still_told(tree: Path) -> None:
    (tree / "b" / "bad.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"bad\.gz: damaged"):
        list(read_blocks(expand(f"{tree}/b/*.gz")))


def test_training_says_what_was_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", str(tree / "cache"))
    said: list[str] = []
    overrides = [f"data.train={tree}/**/*.py", "train.max_minutes=null", "train.max_steps=1", "train.batch_size=2"]
    overrides += ["model.hidden_size=8", "objective.k1=8"]
    es.train("shakespeare-minute", tree / "run", said.append, overrides=overrides)
    assert "left out: 3 empty files of data.train" in said

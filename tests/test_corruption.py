"""Every file of a run and of its token files, damaged in every way: refused by name, made again, or the same result."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from little_data import shakespeare
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app

OPTIONS = [
    "model.embedding_size=8", "model.hidden_size=12", "train.batch_size=4", "objective.k1=16", "train.max_minutes=null",
    "train.validate_every=2", "train.max_steps=4", "train.keep_last=1", "data.unk=true",
]  # fmt: skip
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "eval": lambda run: ["eval", str(run), "--json"],
    "score": lambda run: ["score", str(run)],
    "generate": lambda run: ["generate", str(run), "--prompt", "The", "--length", "20", "--seed", "1"],
    "resume": lambda run: ["train", "--resume", str(run)],
}


def flip(path: Path, content: bytes, chance: random.Random) -> None:
    damaged = bytearray(content or b"?")
    bit = chance.randrange(8 * len(damaged))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)


def huge(path: Path, content: bytes, chance: random.Random) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


DAMAGES: dict[str, Callable[[Path, bytes, random.Random], Any]] = {
    "flip": flip,
    "cut": lambda path, content, chance: path.write_bytes(content[: chance.randrange(len(content) or 1)]),
    "empty": lambda path, content, chance: path.touch(),
    "zeros": lambda path, content, chance: path.write_bytes(bytes(len(content))),
    "not UTF-8": lambda path, content, chance: path.write_bytes(content[:9] + b"\xff\xfe\x80" + content[9:]),
    "nested": lambda path, content, chance: path.write_bytes(b"[" * 100_000),
    "another": lambda path, content, chance: path.write_bytes(b'{"format": Infinity}'),
    "pipe": lambda path, content, chance: os.mkfifo(path),
    "folder": lambda path, content, chance: path.mkdir(),
    "huge": huge,
    "device": lambda path, content, chance: path.symlink_to("/dev/zero"),
    "gone": lambda path, content, chance: None,
}
FILES = [
    ".lock", "README.md", "config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "scores.json",
    "tokenizer.json", "checkpoints/step-00000004/carried.safetensors", "checkpoints/step-00000004/data.json",
    "checkpoints/step-00000004/manifest.json", "checkpoints/step-00000004/model.safetensors",
    "checkpoints/step-00000004/optimizer.safetensors", "checkpoints/step-00000004/random.safetensors",
]  # fmt: skip
CACHED = ["corpus.json", "starts.npy", "tokens.bin"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained run, its token files, and results as they should be."""
    base = tmp_path_factory.mktemp("whole")
    (base / "play.txt").write_text(shakespeare()[: shakespeare().rfind("\n", 0, 6000) + 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_CACHE", str(base / "cache"))
        patch.setenv("EVERSTEP_COMPILER", "none")
        overrides = [*OPTIONS, f"data.train={base / 'play.txt'}"]
        es.train("shakespeare-minute", base / "run", lambda line: None, overrides=overrides)
        shutil.copytree(base / "run", base / "kept")
        shutil.copytree(base / "cache", base / "kept-cache")
        yield base


@pytest.fixture
def run(whole: Path) -> Path:
    for name, kept in (("run", "kept"), ("cache", "kept-cache")):
        shutil.rmtree(whole / name)
        shutil.copytree(whole / kept, whole / name)
    return whole / "run"


@pytest.fixture(scope="module")
def right(whole: Path) -> dict[str, str]:
    found = {
        name: CliRunner().invoke(app, command(whole / "run"), input="To be\n") for name, command in COMMANDS.items()
    }
    assert all(outcome.exit_code == 0 for outcome in found.values())
    return {name: outcome.stdout for name, outcome in found.items()}


def results(run: Path) -> list[bytes]:
    """Of a run; what is no regular file any more has none."""
    files = [run / name for name in ("scores.json", "model.safetensors")]
    return [path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 20 else b"" for path in files]


def check(run: Path, right: dict[str, str], kept: Path, damaged: str) -> None:
    for name, command in COMMANDS.items():
        outcome = CliRunner().invoke(app, command(run), input="To be\n")
        told = f"{name}: exit {outcome.exit_code}, {outcome.output}"
        assert outcome.exception is None or isinstance(outcome.exception, SystemExit), told
        if outcome.exit_code == 0:
            assert outcome.stdout == right[name], told
            assert name != "resume" or results(run) == results(kept), told
        else:
            assert outcome.exit_code == 2, told
            assert Path(damaged).name in outcome.stderr, told


def test_the_list_of_files_is_whole(whole: Path) -> None:
    found = {str(path.relative_to(whole / "kept")) for path in (whole / "kept").rglob("*") if path.is_file()}
    assert found == set(FILES)
    assert {path.name for path in (whole / "kept-cache").rglob("*") if path.is_file()} == set(CACHED)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run(name: str, run: Path, right: dict[str, str], whole: Path) -> None:
    """Three kinds of damage to each file, other ones to each, so that all kinds come."""
    kinds, at = list(DAMAGES), FILES.index(name)
    for kind in (kinds[at % len(kinds)], kinds[(5 * at + 7) % len(kinds)], "flip"):
        shutil.rmtree(run)
        shutil.copytree(whole / "kept", run)
        content = (run / name).read_bytes()
        (run / name).unlink()
        DAMAGES[kind](run / name, content, random.Random(f"{name} {kind}"))
        check(run, right, whole / "kept", name)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_token_files(kind: str, run: Path, right: dict[str, str], whole: Path) -> None:
    for path in sorted((whole / "cache").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            path.unlink()
            DAMAGES[kind](path, content, random.Random(f"{path.name} {kind}"))
    for name in ("eval", "resume"):  # which read one split, and all
        outcome = CliRunner().invoke(app, COMMANDS[name](run))
        assert (outcome.exit_code, outcome.stdout) == (0, right[name])
    assert results(run) == results(whole / "kept")
    made, kept = (
        [path.read_bytes() for path in sorted((whole / name).rglob("*.bin"))] for name in ("cache", "kept-cache")
    )
    assert made == kept


@pytest.mark.parametrize(("one", "other"), [(FILES[at], FILES[at - 5]) for at in range(len(FILES))])
def test_two_files_of_a_run_in_each_others_place(
    one: str, other: str, run: Path, right: dict[str, str], whole: Path
) -> None:
    first, second = (run / one).read_bytes(), (run / other).read_bytes()
    (run / one).write_bytes(second)
    (run / other).write_bytes(first)
    for name, command in COMMANDS.items():
        outcome = CliRunner().invoke(app, command(run), input="To be\n")
        assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.output
        assert outcome.exit_code in (0, 2)
        if outcome.exit_code == 0:
            assert outcome.stdout == right[name]
            assert name != "resume" or results(run) == results(whole / "kept")

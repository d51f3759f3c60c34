"""Text as it is drawn: the same as drawn at once, on the terminal piece by piece, and kept when it is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, BinaryIO

import apart
import pytest
import torch
from caches import cache_in
from untrained import untrained

import everstep as es
from everstep.cli.run_verbs import write_texts
from everstep.data import Tokenizer
from everstep.data.text.vocabulary import KINDS
from everstep.decode import Sampler, draws, sample
from everstep.decode.section import SamplingSection
from everstep.errors import ConfigError
from everstep.native import toolchain
from everstep.networks import streaming
from everstep.runs.run import Run

P = torch.tensor([0.4, 0.3, 0.2, 0.1])


TEXT = "To be, or not to be: café ▁▂ 東京.\nThat is the question.\n" * 40
SIZES = ["model.hidden_size=8", "model.embedding_size=4", "train.max_minutes=null", "train.max_steps=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Untrained models of each unit; the one of characters is a run folder, too."""
    folder = tmp_path_factory.mktemp("generate")
    text = folder / "text.txt"
    text.write_text(TEXT, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_CACHE", cache_in(folder))
        overrides = [*SIZES, f"data.train={text}", "train.batch_size=4", "objective.k1=8"]
        made = {"chars": es.train("shakespeare-minute", folder / "chars", lambda _: None, overrides=overrides)}
    for unit in KINDS[1:]:
        tokenizer = Tokenizer.train([TEXT], unit, max_size={"bpe": 270, "unigram": 60}.get(unit))
        made[unit] = untrained(folder / unit, "shakespeare-minute", *overrides, tokenizer=tokenizer)
    return made


@pytest.mark.parametrize("unit", KINDS)
def test_pieces_join_to_the_texts_drawn_at_once(runs: dict[str, Run], unit: str) -> None:
    prompt = "the question" if unit == "chars" else "be 東"
    how = SamplingSection(prompt=prompt, length=40, temperature=1.5)
    pieces = list(runs[unit].stream(how, seed=3, count=2))
    texts = runs[unit].generate(prompt, 40, 1.5, seed=3, count=2)
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == texts
    assert len(pieces) == 40 + 2


def test_each_token_comes_when_it_is_drawn() -> None:
    steps = 0

    def step(tokens: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal steps
        steps += 1
        return P.log().expand(len(tokens), 4), state

    drawn = draws(step, torch.zeros(1), [0], 10**12, Sampler(generator=torch.Generator().manual_seed(0)))
    first = [int(tokens) for tokens in islice(drawn, 5)]
    assert steps == 5
    assert not torch.is_inference_mode_enabled(), "the mode leaks to whoever asks for the tokens"
    assert first == sample(step, torch.zeros(1), [0], 5, generator=torch.Generator().manual_seed(0))[0].tolist()


@pytest.mark.parametrize("temperature", [1e-308, 5e-324, 1e-200])
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float, cut: dict[str, float]) -> None:
    def step(tokens: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.linspace(0, 0.5, 100).log_softmax(-1).expand(len(tokens), 100), state

    drawn = sample(step, torch.zeros(3), [0], 20, count=3, temperature=temperature, **cut)  # type: ignore[arg-type]
    assert drawn.unique().tolist() == [99]


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1e-320])
def test_temperatures_that_are_none_are_refused(runs: dict[str, Run], temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature should be 0 or more"):
        Sampler(temperature)
    with pytest.raises(ConfigError, match="temperature: expected a number ≥ 0"):
        runs["chars"].generate(temperature=temperature)


def test_without_more_the_recipe_says_how(runs: dict[str, Run]) -> None:
    run = runs["chars"]
    decode = run.decode
    assert decode == run.recipe.decode  # type: ignore[attr-defined]
    text = "".join(piece for (piece,) in run.stream(seed=4))
    assert text == run.generate(decode.prompt, decode.length, decode.temperature, decode.top_k, decode.top_p, seed=4)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "1"])
def test_seeds_that_are_none_are_refused(runs: dict[str, Run], seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"generate: seed should be a whole number from 0 to 2\^63 - 1, but is"):
        runs["words"].generate("be", length=1, seed=seed)


@pytest.mark.parametrize("unit", ["chars", "words", "unigram"])
def test_unknown_symbols_are_not_drawn_unless_asked_for(unit: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([TEXT], unit, max_size=60 if unit == "unigram" else None, unk=True)
    run = untrained(tmp_path, "shakespeare-minute", *SIZES, tokenizer=tokenizer)
    with torch.no_grad():
        run.model.head.bias[tokenizer.unk_id] = 5.0
    how: dict[str, Any] = {"prompt": "or", "length": 30, "seed": 2}
    assert run.generate(**how, unk=True).count("<unk>") > 15
    for cut in ({}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}):
        text = run.generate(**how, **cut)
        assert "<unk>" not in text
        assert len(text) > 10


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "IndRNN", "MGU", "PeepholeLSTM"])
def test_texts_of_the_compiled_step_are_those_of_the_loop(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.train([TEXT], "chars")
    run = untrained(tmp_path, "shakespeare-minute", *SIZES, f"model.cell={cell}", tokenizer=tokenizer)
    made: list[es.Stream] = []

    class Seen(es.Stream):
        def __init__(self, *given: Any):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(streaming, "Stream", Seen)
    texts: dict[int, list[list[str]]] = {}
    for warm in (0, 1000):
        monkeypatch.setattr(streaming, "WARM", warm)
        texts[warm] = [run.generate("To be", length=150, seed=seed, count=2) for seed in (1, 2, 3)]
        assert len(made) == 6  # of one row, which is tried first, and of two
        assert all(stream.compiled for stream in made)
    assert texts[0] == texts[1000]
    assert len({text for pair in texts[0] for text in pair}) == 6


@pytest.mark.parametrize("count", [10**8, 10**12, 10**30])
def test_more_texts_than_memory_holds_are_refused(runs: dict[str, Run], count: int) -> None:
    with pytest.raises(ConfigError, match=r"count should be at most [\d,]+ for this model.* but is 1[,0]+"):
        runs["words"].generate(count=count)


def test_a_prompt_is_read_as_training_reads(runs: dict[str, Run]) -> None:
    run = runs["chars"]
    for prompt in ("be\r\nTo", "be\rTo", "\ufeffbe\nTo"):
        assert run.generate(prompt, 10, seed=0) == run.generate("be\nTo", 10, seed=0)
        assert run.task.decoder(run.model, prompt).unknown == 0


def test_stopped_texts_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[list[str]]:
        yield ["a", "b", "c"]
        yield [" a", " b", " c"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_texts(pieces())
    assert capsys.readouterr().out == "a a\n---\nb b\n---\nc c\n"


@contextmanager
def piped(command: Sequence[str], folder: Path) -> Iterator[tuple[BinaryIO, ForkServerProcess]]:
    """A command that runs, and the pipe that it writes to; what it tells is in `told.txt` of the folder."""
    pipe, told = folder / "pipe", folder / "told.txt"
    os.mkfifo(pipe)
    process = apart.started(apart.command, command, told=told, out=pipe)
    with pipe.open("rb") as reading:
        yield reading, process


@pytest.mark.parametrize("count", ["1", "2"])
def test_text_shows_while_it_is_drawn_and_ctrl_c_keeps_it(runs: dict[str, Run], count: str, tmp_path: Path) -> None:
    command = ["generate", str(runs["chars"].path), "--count", count, "--seed", "7", "--temperature", "1"]
    with piped([*command, "--prompt", "To be", "--length", "100000000"], tmp_path) as (reading, process):
        shown = reading.read(300)  # long before the end
        os.kill(process.pid, signal.SIGINT)
        rest = reading.read()
    assert (apart.ended(process), (tmp_path / "told.txt").read_text()) == (130, "everstep: interrupted.\n")
    texts = (shown + rest).decode().removesuffix("\n").split("\n---\n")
    assert len(texts) == int(count)
    whole = runs["chars"].generate("To be", 400, seed=7, count=int(count))
    for text, drawn in zip(texts, [whole] if count == "1" else whole, strict=True):
        assert text[:200] == drawn[:200]


def test_a_reader_that_has_seen_enough_ends_it(runs: dict[str, Run], tmp_path: Path) -> None:
    command = ["generate", str(runs["chars"].path), "--length", "100000000"]
    with piped(command, tmp_path) as (reading, process):
        assert len(reading.read(20)) == 20
    assert (apart.ended(process), (tmp_path / "told.txt").read_text()) == (141, "")


@pytest.mark.parametrize(
    ("command", "closed", "said"),
    [
        ("generate {} --length 5", "stdout", "everstep: standard output: it is closed.\n"),
        ("score {}", "stdout", "everstep: standard output: it is closed.\n"),
        ("eval {}", "stdout", "everstep: standard output: it is closed.\n"),
        ("score {}", "stdin", "everstep: standard input is closed: expected lines there, such as … < sentences.txt\n"),
    ],
)
def test_closed_streams_are_told(runs: dict[str, Run], command: str, closed: str, said: str, tmp_path: Path) -> None:
    lines, told = tmp_path / "lines.txt", tmp_path / "told.txt"
    lines.write_text("to be\n")
    words = command.format(runs["chars"].path).split()
    process = apart.started(apart.command, words, told=told, read=str(lines), closed=(closed,))
    assert (apart.ended(process), told.read_text()) == (2, said)

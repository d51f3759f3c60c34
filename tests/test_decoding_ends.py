"""Where drawn texts end, and what it takes to ask for it; what `--from`, `--resume KEY=VALUE` and `--data` take."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as es
from everstep.errors import ConfigError, DataError, RunError
from everstep.runs.drawn_text import SpelledText, spelled
from everstep.runs.shipped_recipes import recipes
from everstep.runs.training import resume

TINY = [
    "model.embedding_size=8", "model.hidden_size=16", "train.batch_size=4", "objective.k1=16", "train.max_steps=2",
    "train.max_epochs=null", "train.max_minutes=null", "train.warmup_steps=0", "data.min_count=1",
]  # fmt: skip
TEXT = "What say you to that? I say nothing, and so it goes.\n" * 60


def quietly(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def here(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("play.txt").write_text(TEXT)


def train(out: str, *more: str, recipe: str = "text-chars", **options: Any) -> Any:
    return es.train(recipe, out, quietly, overrides=["data.train=play.txt", *TINY, *more], **options)


class Letters:
    """Spells 0 … 25 as a … z."""

    def spell(self, ids: Any) -> str:
        return "".join(chr(97 + i) for i in ids)

    def end(self) -> str:
        return "."


def drawn(rows: list[str], stop: str = "", end: str | None = None) -> list[str]:
    """What becomes of texts that are drawn letter by letter after `a`."""
    columns = (torch.tensor([ord(letter) - 97 for letter in letters]) for letters in zip(*rows, strict=True))
    texts = [SpelledText(Letters(), None if end is None else ord(end) - 97, stop) for _ in rows]
    pieces = list(spelled(texts, [0], columns))
    return ["".join(parts) for parts in zip(*pieces, strict=True)]


def test_texts_end_before_a_text_or_a_symbol() -> None:
    assert drawn(["bcd"]) == ["abcd."]
    assert drawn(["bcdbce", "cdecde"], stop="bce") == ["abcd", "acdecde."]
    assert drawn(["bbbc"], stop="bbc") == ["ab"]  # begins anew within its own beginning
    assert drawn(["bcx", "xbc"], stop="bc") == ["a", "ax"]
    assert drawn(["bb"], stop="bbb") == ["abb."]  # a beginning of it alone is text
    assert drawn(["bzc", "bcz"], end="z") == ["ab.", "abc."]
    assert drawn(["xb", "bx"], stop="x", end="b") == ["a", "a."]
    assert drawn(["", ""]) == ["a.", "a."]


def test_no_more_is_drawn_when_all_have_ended() -> None:
    endless = (torch.tensor([k % 3 + 1]) for k in itertools.count())
    assert ["".join(piece) for piece in spelled([SpelledText(Letters(), None, "d")], [0], endless)][-1] == ""


def test_the_end_symbol_has_to_be_there() -> None:
    with pytest.raises(ConfigError, match=r"until_end.*which this run's vocabulary lacks.*--stop"):
        train("chars").generate(until_end=True)
    run = train("words", recipe="text-words")
    texts = run.generate(length=400, until_end=True, seed=1, count=3)
    assert len(texts) == 3
    assert not any("\n" in text.strip("\n") for text in texts)


def test_a_stop_text_ends_what_the_same_seed_draws() -> None:
    run = train("run")
    whole = run.generate(prompt="Wh", length=200, seed=5)
    for stop in (whole[9:11], whole[130:133]):
        assert run.generate(prompt="Wh", length=200, seed=5, stop=stop) == "Wh" + whole[2:].partition(stop)[0]


# ------------------------------------------------------------------------------------------------ going on and starting


def test_from_takes_weights_and_vocabulary_and_says_what_differs() -> None:
    first = train("first")
    Path("more.txt").write_text("What say you? §§§\n" * 90)
    said: list[str] = []
    changes = ["data.train=more.txt", *TINY, "train.learning_rate=1e-30"]
    tuned = es.train("text-chars", "tuned", said.append, overrides=changes, start_from="first")
    assert any("unknown" in line and "(0.00 %)" not in line for line in said if line.startswith("train:"))
    assert tuned.task.tokenizer.to_bytes() == first.task.tokenizer.to_bytes()
    for one, other in zip(tuned.model.parameters(), first.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert Path(tuned.recipe.data.train).is_absolute()
    for more, told in (
        ("model.hidden_size=20", "model.hidden_size is 16 there and 20 here"),
        ("model.cell=GRU", "model.cell is 'LSTM' there and 'GRU' here"),
        ("model.cell={type: LSTM}", "model.cell is 'LSTM' there and"),  # of the same shape
    ):
        with pytest.raises(RunError, match=told):
            train("none", more, start_from="first")
    with pytest.raises(DataError, match=r"data\.unit: the vocabulary is of chars, the recipe's of words"):
        train("none", recipe="text-words", start_from="first")
    with pytest.raises(RunError, match="nowhere is not a run"):
        train("none", start_from="nowhere")
    assert not Path("none").exists()


def test_resume_raises_limits_and_nothing_else() -> None:
    train("run")
    with pytest.raises(ConfigError, match=r"model\.cell cannot change .*train\.max_steps"):
        resume("run", quietly, overrides=["model.cell=GRU"])
    before = Path("run/config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"train\.max_steps: expected a whole number"):
        resume("run", quietly, overrides=["train.max_steps=many"])
    assert Path("run/config.yaml").read_bytes() == before
    resume("run", quietly, overrides=["train.max_steps=5"])
    assert "max_steps: 5" in Path("run/config.yaml").read_text()
    assert '"train.max_steps": 5' in Path("run/environment.json").read_text()
    assert es.load("run").recipe.train.max_steps == 5


@pytest.mark.parametrize(
    ("limit", "done"),
    [("max_steps=2", "4 steps"), ("max_epochs=1", r"more than 1 epoch"), ("max_minutes=1e-9", r"\d\.\d minutes")],
)
def test_a_limit_below_what_is_done_is_refused(limit: str, done: str) -> None:
    train("run", "train.max_steps=4", "objective.k1=240")  # three steps an epoch
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    key = limit.partition("=")[0]
    with pytest.raises(
        ConfigError, match=rf"^{key}: expected more than the progress so far \({done}\); got .* max_steps=4$"
    ):
        resume("run", quietly, overrides=[f"train.{limit}"])
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    config = Path("run/config.yaml")
    config.write_text(
        config.read_text().replace(f"{key}: {'4' if key == 'max_steps' else 'null'}", f"{key}: {limit[len(key) + 1 :]}")
    )
    with pytest.raises(ConfigError, match=rf"^{key}: expected more than"):
        resume("run", quietly)


def test_a_run_that_has_nothing_left_to_do_says_so() -> None:
    train("run")
    lines: list[str] = []
    resume("run", lines.append)
    assert (
        "no step was left to make; to train on, raise max_steps: everstep train --resume run train.max_steps=…" in lines
    )
    assert lines[-2].endswith("; ended by max_steps")
    resume("run", lines.append, overrides=["train.max_steps=5", "train.max_epochs=9"])
    assert len([line for line in lines if "no step was left" in line]) == 1


def test_other_files_are_evaluated() -> None:
    run = train("run")
    Path("a.txt").write_text(TEXT[:530])
    Path("b.txt").write_text(TEXT[:1060])
    found = run.evaluate(data=["a.txt", "b.txt"])
    assert found["tokens"] == 1590
    assert found["data"] == "a.txt, b.txt"
    with pytest.raises(DataError, match=r"--data: .*c\.txt"):
        run.evaluate(data=["c.txt"])
    assert run.evaluate(data=["everstep:shakespeare"])["tokens"] > 10**6


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("name", [name for name, _ in recipes()])
def test_keys_of_every_recipe_are_explained(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everstep.runs.recipe_files import explained_keys, flat, load_recipe

    monkeypatch.setenv("EVERSTEP_DATA", str(shared_data))
    rows = explained_keys(name)
    assert {row["key"] for row in rows} == set(flat(load_recipe(name)))
    for row in rows:
        assert row["meaning"], row["key"]
        assert row["type"], row["key"]
        assert "\n" not in row["default"] + row["value"]

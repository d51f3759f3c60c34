"""A text of one's own, however short, and however it is named: what is held out, and advice that works."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
from caches import cache_in
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.cli.train_verb import known_prompt
from everstep.data.text.text_files import line_end_at
from everstep.errors import DataError, EverstepError, RunError
from everstep.learn import RunLock
from everstep.runs.recipe_files import load_recipe, parse_recipe
from everstep.runs.text_data import Texts

SMALL = [
    "model.embedding_size=8",
    "model.hidden_size=8",
    "train.max_steps=2",
    "train.max_epochs=null",
    "objective.k1=8",
]
RECIPES = ["text-words", "text-subwords", "text-chars", "text-bytes", "shakespeare-minute"]
SHORT = {
    "three lines": "The cat sat.\nThe dog ran.\nThe end.\n",
    "three lines without an end": "The cat sat.\nThe dog ran.\nThe end.",
    "one line": "One line is all there is.\n",
    "one line without an end": "One line is all there is.",
    "two lines": "a line\nanother\n",
    "two characters": "ab",
    "blank lines at the end": "The cat sat.\nThe dog ran." + "\n" * 30,
}
BATCHES = {name: load_recipe(name).train.batch_size for name in RECIPES}
ADVICE = re.compile(r"\b(?:data|train|model)\.\w+=[\w.\-]+")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("text", SHORT.values(), ids=SHORT)
def test_who_follows_the_advice_gets_a_model(
    text: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", cache_in(tmp_path))
    monkeypatch.setattr("everstep.runs.training._Job.fit", lambda job, resume, callbacks=(): job)
    (tmp_path / "a.txt").write_text(text)
    overrides = [*SMALL, f"data.train={tmp_path}/a.txt"]
    for attempt in range(3):
        told = problem(recipe, tmp_path / f"run{attempt}", overrides)
        if told is None:
            return
        advice = [one for one in ADVICE.findall(told) if f"batch_size={BATCHES[recipe]}" not in one]
        if not advice and len(text) == 2:  # one of them held out
            assert told.endswith(("more text", "give a text with more"))
            return
        assert advice, told
        assert not set(advice) & set(overrides), f"{told}: which was done"
        overrides += advice
    pytest.fail(f"still no model after {overrides}")


def problem(recipe: str, out: Path, overrides: list[str]) -> str | None:
    """What keeps a run from beginning."""
    try:
        es.train(recipe, out, lambda _: None, overrides=overrides)
    except EverstepError as error:
        return str(error)
    return None


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\n"), min_size=2, max_size=60),
    share=st.floats(0.1, 0.95),
    most=st.none() | st.integers(1, 40),
)
def test_what_is_held_out_is_a_part_at_a_lines_end(
    text: str, share: float, most: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("share") / "a.txt"
    path.write_bytes(text.encode())
    target = max(int(len(text) * share), 0 if most is None else len(text) - most)
    cut = line_end_at([path], share, most=most)
    assert cut < len(text)
    assert most is None or len(text) - cut <= most
    after = text.find("\n", max(target - 1, 0), len(text) - 1) + 1
    if after:
        assert cut == after
    elif text[:cut].endswith("\n") and cut < target:  # the beginning of the last line
        assert "\n" not in text[cut:-1]
        assert 2 * (len(text) - cut) <= len(text)
    else:
        assert cut == target


def test_a_text_of_one_character_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    config = parse_recipe(f"task: language-model\ntrain: {{max_steps: 1}}\ndata: {{train: {tmp_path}/a.txt}}", "recipe")
    with pytest.raises(DataError, match="too short to hold some out of it; give more text"):
        Texts(config.data).read("train")


# --------------------------------------------------------------------------------------------- what stands in its place


def call(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(args))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat.txt", b"Ann: hi\nBob: hello: you\n"),
        ("play.txt", b"To be, or not to be\n"),
        ("list.txt", b"- one\n- two\n"),
        ("my chat.log", "“Où ?”\n".encode("cp1252")),
        ("data.csv", b"a,b\n1,2\n"),
        ("image", b"\x89PNG\r\n\0\0"),
        ("book.txt", b"x: y\n" * 400_000),
        ("empty.txt", b""),
    ],
)
@pytest.mark.parametrize("more", [[], ["--out", "run"]])
def test_a_text_in_the_place_of_a_recipe(
    name: str, content: bytes, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    code, _, told = call("train", name, *more)
    assert code == 2
    shown = f"'data.train={name}'" if " " in name else f"data.train={name}"
    assert f"{name} is no recipe, which is a YAML file. " in told
    assert f"everstep train text-chars {shown} --out runs/" in told


def test_a_folder_in_the_place_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    assert "everstep train text-chars 'data.train=texts/*.txt' --out runs/texts" in call("train", "texts")[2]
    Path("texts/a.txt").write_text("a")
    told = call("train", "text-words", "texts/a.txt", "--out", "run")[2]
    assert "got 'texts/a.txt'. For a text: data.train=texts/a.txt." in told


def test_a_recipe_of_any_name_is_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text("task: language-model\ntrain: {max_steps: 1}\n")
    assert load_recipe(tmp_path / "recipe.txt").train.max_steps == 1


def test_the_prompt_to_try_is_one_that_the_vocabulary_has(tmp_path: Path) -> None:
    def suggested(text: str, known: str, prompt: str = "") -> str:
        def decoder(model: object, tried: str) -> types.SimpleNamespace:
            if known != "words" and set(tried) - set(text):
                raise DataError("unknown")
            return types.SimpleNamespace(unknown=int(known == "words" and tried not in text.split()))

        recipe = types.SimpleNamespace(decode=types.SimpleNamespace(prompt=prompt))
        shown = types.SimpleNamespace(labels=list(text))
        task = types.SimpleNamespace(recipe=recipe, decoder=decoder, passage=lambda *_: shown)
        run = types.SimpleNamespace(
            task=task, decode=recipe.decode, model=None, able=lambda verb: task, passage=lambda *_: shown
        )
        return known_prompt(run)  # type: ignore[arg-type]

    assert suggested("The end, Thea", "chars") == "The"
    assert suggested("no such capital", "chars") == "no"
    assert suggested("The end", "words") == "The"
    assert suggested("no end", "words") == "no"
    assert suggested("no end", "chars", prompt="x") == ""


def test_a_run_that_is_being_trained_is_not_to_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", cache_in(tmp_path))
    (tmp_path / "a.txt").write_text("some text to learn from\n" * 20)
    overrides = [*SMALL, f"data.train={tmp_path}/a.txt", "train.batch_size=2"]
    run = es.train("text-chars", tmp_path / "run", lambda _: None, overrides=overrides)
    (run.path / "model.safetensors").unlink()
    with RunLock(run.path), pytest.raises(RunError, match=r"since it is being trained by another process \(pid \d+\)"):
        es.load(run.path)
    with pytest.raises(RunError, match="finish it: everstep train --resume"):
        es.load(run.path)


def test_doctor_names_a_variable_as_it_is_written() -> None:
    _, out, _ = call("doctor")
    assert re.search(r"^EVERSTEP_DATA  ", out, re.MULTILINE)
    assert re.search(r"^usable cores  ", out, re.MULTILINE)

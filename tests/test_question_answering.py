"""The job of questions on stories: its files, the memory network, what it answers, draws and refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.readers.stories import questions_in, read_stories
from everstep.errors import ConfigError, DataError
from everstep.networks.answers import OneOf
from everstep.networks.memory_network import MemoryNetwork, MemoryNetworkSection
from everstep.rivals.same_question import same_question
from everstep.runs.recipe_files import load_task

STORY = ["1 Ada went to the attic.", "2 Ben went to the hall.", "3 Where is Ada?\tattic\t1", "4 Ada took the lamp.",
         "5 Where is the lamp?\tattic\t1 4"]  # fmt: skip
PLACES = ("attic", "hall", "garden", "cellar")


def quietly(line: str) -> None:
    del line


def stories(count: int = 60, seed: int = 0) -> str:
    """Stories of two people who walk; where someone is, the last sentence about them tells."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        where = {}
        for number in range(1, 5):
            person = ("Ada", "Ben")[int(random.integers(2))] if number > 2 else ("Ada", "Ben")[number - 1]
            where[person] = PLACES[int(random.integers(len(PLACES)))]
            lines.append(f"{number} {person} went to the {where[person]}.")
        for number, person in enumerate(where, 5):
            lines.append(f"{number} Where is {person}?\t{where[person]}")
    return "\n".join(lines) + "\n"


def recipe(folder: Path, text: str | None = None, name: str = "stories.txt", more: str = "") -> Path:
    (folder / name).write_text(stories() if text is None else text)
    path = folder / "recipe.yaml"
    path.write_text(f"task: question-answering\ndata:\n  train: {folder}/{name}\n{more}train:\n  max_epochs: 1\n")
    return path


class TestLaws(JobLaws):
    job = "question-answering"
    settings = ("model.embedding_size=8",)
    asked = (STORY[:3], ["1 Ben went to the cellar.", "2 Where is Ben?"], ["1 Who ran?"])
    numbered = "line"

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)


def test_a_question_has_the_sentences_before_it_without_other_questions() -> None:
    first, second = questions_in(STORY, "x")
    assert first == (("Ada went to the attic.", "Ben went to the hall."), "Where is Ada?", "attic", 3)
    assert second.story == (*first.story, "Ada took the lamp.")
    assert second.text.split("\n") == [*second.story, "Where is the lamp?"]
    both = list(questions_in([*STORY, "", "1 Ben ran.\r\n", "2 Who ran?"], "x"))
    assert both[-1] == (("Ben ran.",), "Who ran?", None, 8)
    found = {"story": [" Ada  ran. ", ""], "question": "Who\tran?", "answer": "Ada"}
    assert list(questions_in([json.dumps(found)], "x")) == [(("Ada ran.",), "Who ran?", "Ada", 1)]
    (other,) = questions_in([json.dumps({**found, "said": "Ben"})], "x", "said")
    assert other.answer == "Ben"


def test_files_may_be_packed_and_marked(tmp_path: Path) -> None:
    text = "\ufeff" + "\r\n".join(STORY) + "\r\n"
    (tmp_path / "plain.txt").write_bytes(text.encode())
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (read_stories(str(tmp_path / name), fewest_answers=1) for name in ("plain.txt", "packed.txt.gz"))
    assert plain.texts == packed.texts
    assert plain.labels == ["attic", "attic"]
    assert plain.place(1).endswith("plain.txt, line 5")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["Ada ran."], "line 1: expected numbered lines"),
        (["1"], "line 1: expected numbered lines"),
        (["2 Ada ran.", "2 Ben ran."], "line 2: expected 1, which begins a story, or a number above 2; got 2"),
        (["1 Who ran?\t", "2 Ada ran."], "line 1: expected an answer after the tab"),
        (["{"], "line 1: expected a JSON object"),
        (['{"story": "Ada ran.", "question": "Who?"}'], "line 1: expected"),
        (['{"story": [1], "question": "Who?"}'], "line 1: expected"),
        (['{"story": [], "question": " "}'], "line 1: expected"),
        (['{"story": [], "question": "Who?", "answer": 3}'], "expected a text as answer; got 3"),
        (["[" * 100_000], "line 1: expected numbered lines"),
        (['{"a":' * 10_000], "line 1: expected a JSON object"),
    ],
)
def test_what_lines_hold_is_told(lines: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(questions_in(lines, "x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty|no labelled question"),
        ("1 Ada ran.\n", "no labelled question"),
        ("1 Ada ran.\n2 Who ran?\n", "line 2: expected an answer after a tab: 'Who ran.'"),
        ("1 Ada ran.\n2 Who ran?\tAda\n", "at least 2 classes"),
    ],
)
def test_what_files_hold_is_told(tmp_path: Path, text: str, words: str) -> None:
    task = load_task(recipe(tmp_path, text), [])
    with pytest.raises(DataError, match=words):
        task.prepare()


def test_settings_that_do_not_fit_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bptt: expected null"):
        load_task(recipe(tmp_path), ["objective.bptt=5"])
    with pytest.raises(ConfigError, match="hops"):
        load_task(recipe(tmp_path), ["model.hops=0"])


def network(**settings: Any) -> MemoryNetwork:
    torch.manual_seed(0)
    section = MemoryNetworkSection(**{"embedding_size": 6, "memory": 4, **settings})
    return MemoryNetwork(9, OneOf(("a", "b", "c")), section).double()


@pytest.mark.parametrize("sentence", ["position", "bag"])
@pytest.mark.parametrize("tying", ["adjacent", "layerwise"])
def test_hops_are_those_of_the_paper(tying: str, sentence: str) -> None:
    model = network(tying=tying, sentence=sentence, hops=2).eval()
    story, question = [[1, 2, 3], [4, 5], [6]], [7, 8]

    def encoded(k: int, row: list[int]) -> torch.Tensor:
        found, d = torch.zeros(6, dtype=torch.float64), torch.arange(1, 7) / 6
        for j, word in enumerate(row, 1):
            share = (1 - j / len(row)) - d * (1 - 2 * j / len(row)) if sentence == "position" else 1
            found = found + share * model.words[k].weight[word]
        return found

    u = encoded(0, question)
    for hop in range(2):
        a, c = (hop, hop + 1) if tying == "adjacent" else (0, 1)
        ages = [2, 1, 0]
        m = torch.stack([encoded(a, row) + model.times[a].weight[age] for row, age in zip(story, ages, strict=True)])
        out = torch.stack([encoded(c, row) + model.times[c].weight[age] for row, age in zip(story, ages, strict=True)])
        p = (m @ u).softmax(0)
        u = (u if tying == "adjacent" else model.between(u)) + p @ out
    inputs = torch.tensor([[[*row, 0, 0][:3] for row in (*story, question)]])
    found, weights = model.hopped(inputs, torch.tensor([4]))
    torch.testing.assert_close(found[0], u)
    torch.testing.assert_close(weights[0, 1], p)


def test_padding_and_what_is_beyond_the_memory_change_nothing() -> None:
    model = network(memory=3).eval()
    rows = torch.randint(1, 9, (1, 4, 3))
    want = model(rows, torch.tensor([4]))
    wide = torch.nn.functional.pad(rows, (0, 2, 0, 3))
    torch.testing.assert_close(model(wide, torch.tensor([4])), want)
    longer = torch.cat([torch.randint(1, 9, (1, 2, 3)), rows], 1)
    torch.testing.assert_close(model(longer, torch.tensor([6])), want)
    alone = model(rows[:, 3:], torch.tensor([1]))
    assert alone.isfinite().all()
    both = model(torch.cat([rows, torch.nn.functional.pad(rows[:, 3:], (0, 0, 0, 3))]), torch.tensor([4, 1]))
    torch.testing.assert_close(both, torch.cat([want, alone]))


def test_gradients_equal_differences_and_padding_learns_nothing() -> None:
    model = network(time_noise=0.0, hops=2)
    rows, lengths = torch.randint(1, 9, (3, 4, 3)), torch.tensor([4, 2, 1])
    rows[0, 0, 1:] = 0
    model.logits(rows, lengths).square().sum().backward()
    for embedding in model.words:
        assert torch.equal(embedding.weight.grad[0], torch.zeros(6, dtype=torch.float64))
    for parameter in model.parameters():
        flat, place = parameter.detach().view(-1), parameter.numel() // 2
        ends = []
        for shift in (1e-5, -1e-5):
            flat[place] += shift
            ends.append(float(model.logits(rows, lengths).square().sum().detach()))
            flat[place] -= shift
        want = (ends[0] - ends[1]) / 2e-5
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(want, rel=1e-5, abs=1e-8)


def test_the_same_question_counts() -> None:
    found = same_question(["who?", "who?", "where?"], np.array([0, 0, 2]), ["who?", "why?"], np.array([0, 2]), 3)
    assert found["accuracy"] == 0.5
    prior = np.array([3, 1, 2]) / 6
    assert found["loss"] == pytest.approx(-np.log([(2 + prior[0]) / 3, prior[2]]).mean())


def test_a_small_run_learns_answers_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, stories(250), more=f"  test: {tmp_path}/test.txt\n")
    (tmp_path / "test.txt").write_text(stories(50, seed=1))
    settings = ["train.max_epochs=25", "train.learning_rate=0.02", "model.embedding_size=16", "model.hops=2"]
    told: list[str] = []
    run = es.train(path, tmp_path / "run", told.append, overrides=[*settings, "train.threads=1"])
    assert "train: 449 questions, 4.0 sentences before each" in told
    figures = run.evaluate("test")
    assert figures["accuracy"] > 0.9
    rivals = run.task.rivals("test", quick=True)
    assert rivals[0]["name"] == "most frequent answer to the question"
    assert all(rival["accuracy"] < figures["accuracy"] for rival in rivals)
    asked = ["1 Ada went to the hall.", "2 Ben went to the attic.", "3 Ada went to the garden.", "4 Where is Ada?"]
    (found,) = run.predict(asked)
    assert found.text.startswith("garden\t")
    assert [one["sentence"] for one in found.record["read"]] == [line[2:] for line in asked[:3]]
    reads = np.array([one["hops"] for one in found.record["read"]])
    assert reads.shape == (3, 2)
    assert reads.sum(0).tolist() == pytest.approx([1, 1])
    (unknown,) = run.predict(["1 Zoe flew to Mars.", "2 Where is Zoe?"])
    assert unknown.record["label"] in PLACES
    told_all = CliRunner().invoke(app, ["look", "run", "--out", "pictures"])
    assert told_all.exit_code == 0, told_all.output
    assert (tmp_path / "pictures" / "hops.png").stat().st_size > 5000
    answered = CliRunner().invoke(app, ["predict", "run"], input="\n".join(asked) + "\n1 Ada ran\nBen\n")
    assert answered.exit_code != 0
    assert answered.stdout.startswith("garden\t")
    assert "line 6: expected numbered lines" in answered.output


def test_list_answers_may_be_labels(tmp_path: Path) -> None:
    lines = []
    for number in range(40):
        things = [name for place, name in enumerate(("ball", "key")) if number >> place & 1] or ["nothing"]
        lines += [f"{place} Ada took the {name}." for place, name in enumerate(things, 1)]
        lines.append(f"{len(things) + 1} What has Ada?\t{','.join(things)}")
    run = es.train(
        recipe(tmp_path, "\n".join(lines) + "\n"), tmp_path / "run", quietly, overrides=["data.label_separator=','"]
    )
    assert "micro_f1" in run.evaluate("valid")


def test_answers_that_training_lacks_count_as_wrong(tmp_path: Path) -> None:
    path = recipe(tmp_path, more=f"  test: {tmp_path}/test.txt\n")
    (tmp_path / "test.txt").write_text(stories(5, seed=1) + "1 Ada went to Mars.\n2 Where is Ada?\tMars\n")
    told: list[str] = []
    run = es.train(path, tmp_path / "run", told.append)
    assert any("1 question of test with answers that training lacks: they count as wrong" in line for line in told)
    found = run.evaluate("test")
    right = sum(one.record["label"] == line for one, line in zip(
        run.predict((tmp_path / "test.txt").read_text().splitlines()),
        [line.split("\t")[1] for line in (tmp_path / "test.txt").read_text().splitlines() if "\t" in line],
        strict=True))  # fmt: skip
    assert (found["count"], found["unknown_answers"]) == (10, 1)
    assert found["accuracy"] == pytest.approx(right / 11)
    (tmp_path / "test.txt").write_text("1 Ada went to Mars.\n2 Where is Ada?\tMars\n")
    with pytest.raises(DataError, match="training has none of the answers of test, such as 'Mars'"):
        es.load(tmp_path / "run").evaluate("test")

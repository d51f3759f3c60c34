"""The job `tree-classification`: what it learns, says, counts, draws and refuses."""

from __future__ import annotations

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
from everstep.data import parse_tree
from everstep.data.tree_batches import NONE, CodedTree, TreeBatches
from everstep.errors import ConfigError, DataError, RunError
from everstep.look.tree_pictures import DrawnTree, _placed, draw_trees
from everstep.networks.answers import OneOf
from everstep.networks.cells_by_name import no_code
from everstep.networks.compositions_by_name import composition_names, make_composition
from everstep.networks.tree_classifier import TreeClassifier, TreeNetworkSection, measured_trees, tree_losses
from everstep.networks.tree_parsing import parsing_figures
from everstep.runs.recipe_files import load_task
from everstep.runs.tree_figures import tree_figures

SMALL = ("model.embedding_size=8", "model.hidden_size=8", "train.batch_size=8", "train.threads=1")


def quietly(_: str) -> None:
    pass


def opinion(random: np.random.Generator, depth: int) -> tuple[int, str]:
    """A tree whose class only its structure tells: "not" turns what it stands beside."""
    kind = random.random()
    if depth == 0 or kind < 0.2:
        value, word = [(1, "good"), (1, "fine"), (-1, "bad"), (-1, "awful"), (0, "film")][random.integers(5)]
        return value, f"({value + 2} {word})"
    if kind < 0.6:
        value, below = opinion(random, depth - 1)
        return -value, f"({2 - value} (2 not) {below})"
    (a, left), (b, right) = opinion(random, depth - 1), opinion(random, depth - 1)
    value = int(np.sign(a + b))
    return value, f"({value + 2} {left} {right})"


def written(path: Path, number: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    path.write_text("".join(opinion(random, 3)[1] + "\n" for _ in range(number)))
    return path


def recipe(folder: Path, extra: str = "") -> Path:
    path = folder / "recipe.yaml"
    train, test = written(folder / "train.txt", 200, 0), written(folder / "test.txt", 40, 1)
    path.write_text(
        f"task: tree-classification\ndata:\n  train: {train}\n  test: {test}\n{extra}train:\n  max_epochs: 15\n"
        "  learning_rate: 0.03\n  select: accuracy\n"
    )
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A classifier that has learned what "not" does."""
    folder = tmp_path_factory.mktemp("trees")
    return es.train(recipe(folder), folder / "run", quietly, overrides=SMALL)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize(
    ("cell", "tracker"),
    [*((cell, None) for cell in composition_names() if cell != "ChildSum"), ("GRU", None), ("NaryTreeLSTM", "LSTM")],
)
def test_one_batch_is_learned_by_heart(cell: str, tracker: str | None) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(3)
    trees = [parse_tree(opinion(random, 3)[1]) for _ in range(6)]
    words = {"not": 1, "good": 2, "fine": 3, "bad": 4, "awful": 5, "film": 6}
    coded = [
        CodedTree(tree, np.array([words[word] for word in tree.leaves]), np.array(list(map(int, tree.labels))) - 1)
        for tree in trees
    ]
    if cell == "MVRNN":  # every inner node has two children there
        assert all(len(below) in (0, 2) for tree in trees for below in tree.children)
    section = TreeNetworkSection(cell=cell, tracker=tracker, tracker_size=4, embedding_size=8, hidden_size=8)
    model = TreeClassifier([0, *[1] * 6], OneOf(("1", "2", "3")), section)
    batches = TreeBatches(coded, 6, shuffle=False)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(80):
        batch = batches.batch(0, 0)
        (loss,) = tree_losses(model, batch)
        assert len(loss.total) == batch.count == batch.forest.nodes
        optimizer.zero_grad()
        loss.total.mean().backward()
        optimizer.step()
    found = measured_trees(model, batches)
    assert (found["accuracy"], found["node_accuracy"], found["count"]) == (1, 1, 6)
    assert found["loss"] < 0.2


def test_a_batch_without_a_class_gives_no_gradient_that_is_not_a_number() -> None:
    """As the share of one of several processes may be."""
    coded = [CodedTree(parse_tree("(1 (1 a) (1 (1 b) (1 c)))"), np.array([1, 2, 3]), np.full(5, NONE))]
    section = TreeNetworkSection(cell="NaryTreeLSTM", tracker="LSTM", tracker_size=4, parses=True, hidden_size=4)
    model = TreeClassifier([0, 1, 1, 1], OneOf(("1", "2")), section)
    assert model.parses
    (loss,) = tree_losses(model, TreeBatches(coded, 1).batch(0, 0))
    loss.total.sum().backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert found
    assert all(bool(gradient.isfinite().all()) for gradient in found)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A classifier that learns to build trees, which is easy where "not" takes what follows."""
    folder = tmp_path_factory.mktemp("parser")
    written = ["(3 good)", "(1 bad)", "(1 (2 not) (3 good))", "(3 (2 not) (1 (2 so) (1 bad)))", "(3 (2 so) (3 good))"]
    (folder / "train.txt").write_text("\n".join(written * 8))
    (folder / "recipe.yaml").write_text(
        f"task: tree-classification\ndata:\n  train: {folder}/train.txt\n  valid: {folder}/train.txt\nmodel:\n"
        "  tracker: LSTM\n  tracker_size: 8\n  parses: true\ntrain:\n  max_epochs: 20\n  learning_rate: 0.05\n"
    )
    return es.train(folder / "recipe.yaml", folder / "run", quietly, overrides=SMALL)


def test_plain_sentences_are_predicted_by_trees_of_its_own(parser: es.Run) -> None:
    found = list(parser.predict(["not so bad", "", "good", "so  good "], format="brackets"))
    assert [one.text for one in found] == ["(3 (2 not) (1 (2 so) (1 bad)))", "", "(3 good)", "(3 (2 so) (3 good))"]
    assert [one.text.split("\t")[0] for one in parser.predict(["not so bad", "not good", "good"])] == ["3", "1", "3"]
    as_trees = list(parser.predict(["(0 (0 not) (0 (0 so) (0 bad)))"]))
    assert [one.text for one in as_trees] == [next(parser.predict(["not so bad"])).text]
    assert list(parser.predict([])) == []
    long = next(parser.predict(["so " * 300 + "good"]))
    assert len(long.record["nodes"]) == 601
    scores = parser.evaluate("valid")
    assert (scores["parsed_accuracy"], scores["phrase_f1"], scores["accuracy"]) == (1, 1, 1)


def test_figures_of_a_parser_count_spans_below_the_root() -> None:
    trees = [
        parse_tree("(1 (1 a) (1 (1 a) (1 (1 a) (1 a))))"),
        parse_tree("(2 (2 (2 a) (2 a)) (2 a))"),
        parse_tree("(1 a)"),
    ]
    section = TreeNetworkSection(tracker="LSTM", tracker_size=4, parses=True, embedding_size=8, hidden_size=8)
    model = TreeClassifier([0, 1], OneOf(("1", "2")), section)
    assert isinstance(model.tree, es.ShiftReduce)
    assert model.tree.reduces is not None
    torch.nn.init.zeros_(model.tree.reduces.weight)
    torch.nn.init.ones_(model.tree.reduces.bias)  # it always reduces: trees branch to the left
    coded = [CodedTree(t, np.ones(len(t.leaves), np.int64), np.array(list(map(int, t.labels))) - 1) for t in trees]
    found = parsing_figures(model, coded)
    assert found["phrase_f1"] == pytest.approx(
        2 * 1 / (3 + 3)
    )  # (0, 2), (0, 3) and (0, 2) beside (1, 4), (2, 4), (0, 2)
    assert found["parsed_accuracy"] in (0, 1 / 3, 2 / 3, 1)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ("(1 (1 a) (1 a) (1 b))", "NaryTreeLSTM expected at most 2 children of a node, but one has 3"),
        (
            "(1 (1 (1 a)) (1 b))",
            r"line 1: model\.parses expected two children .* at each inner node, but one has one child",
        ),
    ],
)
def test_a_parser_learns_from_binary_trees(tree: str, told: str, tmp_path: Path) -> None:
    asked = [*SMALL, "model.parses=true", "model.tracker=LSTM", "data.valid_fraction=0", "data.test=null"]
    path = recipe(tmp_path)
    (tmp_path / "train.txt").write_text(f"{tree}\n(2 b)\n")
    with pytest.raises(DataError, match=told):
        es.train(path, tmp_path / "run", quietly, overrides=[*asked, "train.select=null"])
    with pytest.raises(ConfigError, match=r"model\.parses: expected a tracker beside it"):
        load_task(path, ["model.parses=true"])
    with pytest.raises(ConfigError, match=r"train\.select: expected model\.parses=true beside it; got phrase_f1"):
        load_task(path, ["train.select=phrase_f1"])


def test_it_beats_what_knows_no_trees_and_what_training_says_is_what_eval_says(run: es.Run) -> None:
    scores = run.evaluate("test")
    rivals = {rival["name"]: rival["accuracy"] for rival in run.rivals("test")}
    assert scores["accuracy"] >= 0.8
    assert scores["accuracy"] > max(rivals.values()) + 0.1
    assert "majority class" in rivals
    said = json.loads((run.path / "scores.json").read_text())["test"]
    assert {**said, "rivals": 0} == {**scores, "rivals": 0}
    assert es.load(run.path).evaluate("test") == scores


def test_roots_alone_are_learned_from_where_that_is_asked(tmp_path: Path) -> None:
    task = load_task(recipe(tmp_path), [*SMALL, "objective.nodes=roots"])
    task.prepare()
    batches = task.batches("train", None, "learn")
    batch = batches.batch(0, 0)
    assert batch.count == batch.forest.trees == 8
    assert (batch.targets[batch.forest.roots] >= 0).all()
    every = load_task(tmp_path / "recipe.yaml", SMALL)
    every.prepare()
    batches = every.batches("train", None, "learn")
    assert sum(batches.batch(0, index).count for index in range(len(batches))) > 2 * 180


# ------------------------------------------------------------------------------------------------------------- asking


LINES = ["(1 (2 not) (3 good))", "(2 good)", "(0 (0 good) (0 (9 not) (7 (5 good) (5 strange))))", "(1 not)"]


class TestLaws(JobLaws):
    job = "tree-classification"
    settings = (*SMALL, *(f"model.{name}=0.2" for name in ("dropout", "input_dropout", "embedding_dropout")))
    asked = [[line] for line in LINES]

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)


def test_predictions_are_those_of_each_tree_alone(run: es.Run) -> None:
    together = [found.text for found in run.predict(LINES)]
    assert together == [next(run.predict([line])).text for line in LINES]
    assert [text.split("\t")[0] for text in together[:2]] == ["1", "3"]
    assert run.predict([]) is not None
    trees = [found.text for found in run.predict(LINES, format="brackets")]
    assert trees[0] == "(1 (2 not) (3 good))"
    assert [parse_tree(text).leaves for text in trees] == [parse_tree(line).leaves for line in LINES]
    as_json = next(run.predict(LINES, format="jsonl"))
    assert json.loads(as_json.text)["children"][1] == {"label": "3", "word": "good"}
    assert as_json.record["nodes"] == ["2", "3", "1"]
    assert as_json.record["text"] == "not good"
    assert sum(as_json.record["probabilities"].values()) == pytest.approx(1)


def test_trees_may_come_as_json_or_over_lines_and_wrong_ones_are_told(run: es.Run) -> None:
    line = '{"children": [{"word": "not"}, {"word": "good"}]}'
    assert next(run.predict([line])).text == next(run.predict(LINES)).text
    assert [found.text for found in run.predict(["(1 (2 not)", "", "(3 good)) (2 good)"])] == [
        found.text for found in run.predict(LINES[:2])
    ]
    with pytest.raises(DataError, match="line 1: expected a tree, which starts with '\\(', got 'good'"):
        list(run.predict(["good"]))
    with pytest.raises(DataError, match="the trees to classify, line 2: the tree that starts here is not closed"):
        list(run.predict(["(1 good)", "(1 (1 good)"]))
    with pytest.raises(ConfigError, match="--format: expected brackets or jsonl; got 'csv'"):
        list(run.predict(LINES, format="csv"))
    with pytest.raises(ConfigError, match="expected trees in brackets or JSON"):
        list(run.predict(["1\tgood\t_\t_\t_\t_\t0\troot\t_\t_"], format="brackets"))
    with pytest.raises(
        DataError,
        match=r"classify, the tree of line 1: NaryTreeLSTM expected at most 2 children of a node, but one has 3",
    ):
        list(run.predict(["(1 (1 a) (1 b) (1 c))"]))


@pytest.mark.parametrize("bad", ["(1 (1 good)", "(1 (1 a) (1 b) (1 c))", '{"label": 1}'])
def test_wrong_trees_are_told_after_the_answers_before_them(run: es.Run, bad: str) -> None:
    answers = run.predict([*LINES, bad])
    assert [next(answers).text for _ in LINES] == [found.text for found in run.predict(LINES)]
    with pytest.raises(DataError, match=f"line {len(LINES) + 1}"):
        next(answers)


def test_the_command_line_predicts_evaluates_and_draws(run: es.Run, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["predict", str(run.path), "--format", "brackets"], input="\n".join(LINES))
    assert found.output.splitlines()[0] == "(1 (2 not) (3 good))"
    other = written(tmp_path / "other.txt", 30, 5)
    assert run.evaluate(data=[str(other)])["count"] == 30
    text = tmp_path / "text.txt"
    text.write_text(f"{LINES[0]}\n")
    found = CliRunner().invoke(app, ["look", str(run.path), "--out", str(tmp_path / "own"), "--text", str(text)])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "own" / "trees.png").stat().st_size > 5000
    assert "The predicted class of every node" in found.output
    with pytest.raises(RunError, match="shows no passages, but other pictures"):
        run.passage()
    with pytest.raises(RunError, match="cannot generate; it can eval, predict, look, eval --rivals"):
        run.generate()


def test_trees_are_drawn_with_parents_above_their_children(tmp_path: Path) -> None:
    tree = parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))")
    drawn = DrawnTree(tree.words, tree.children, [2, 3, 2, 4, 3], [0.5] * 5, [True, False, None, True, True])
    assert _placed(drawn) == [(0, 1), (1, 2), (2, 2), (1.5, 1), (0.75, 0)]
    told = draw_trees([drawn, drawn], list("01234"), tmp_path / "trees.png")
    assert "a thick outline marks a wrong prediction" in told
    assert (tmp_path / "trees.png").exists()


# ------------------------------------------------------------------------------------------------------ what is unusual


def test_labels_may_be_renamed_merged_and_left_out(tmp_path: Path) -> None:
    merged = 'data.merge={"bad": ["1"], "good": ["3"]}'
    task = load_task(recipe(tmp_path), [*SMALL, merged])
    task.prepare()
    assert (task.classes, task.answers.names) == (("1", "2", "3"), ("bad", "good"))
    learned, scored = (task.batches("train", None, purpose) for purpose in ("learn", "score"))
    counts = [sum(one.batch(0, index).count for index in range(len(one))) for one in (learned, scored)]
    assert counts[0] > counts[1] > 0
    neutral = task.trees.coded(task.trees.trees("train")[:2], task.ids, task.answers)
    for one in neutral:
        one.targets[:] = NONE
    with pytest.raises(DataError, match="expected trees with a class at their root; none has one"):
        tree_figures(task.model(), neutral)
    named = load_task(tmp_path / "recipe.yaml", [*SMALL, 'data.classes={"bad": 1, "good": 3}'])
    named.prepare()
    assert named.classes == ("bad", "good")
    said = list(named.trees.told(named.ids, named.answers))
    assert said[0].startswith("train: 180 trees")


def test_dependencies_with_a_label_each_are_learned(tmp_path: Path) -> None:
    def sentence(word: str, label: str) -> str:
        rows = [(1, "It", 2), (2, word, 0), (3, "!", 2)]
        lines = [f"{number}\t{form}\t_\tX\t_\t_\t{head}\tdep\t_\t_" for number, form, head in rows]
        return "\n".join([f"# label = {label}", *lines, "", ""])

    (tmp_path / "a.conllu").write_text("".join(sentence(*one) for one in [("works", "pos"), ("fails", "neg")] * 20))
    (tmp_path / "r.yaml").write_text(f"task: tree-classification\ndata: {{train: {tmp_path}/a.conllu}}\n")
    asked = [*SMALL, "model.cell=ChildSumTreeLSTM", "train.max_epochs=4", "train.learning_rate=0.05"]
    found = es.train(tmp_path / "r.yaml", tmp_path / "run", quietly, overrides=asked)
    assert found.evaluate("valid")["accuracy"] == 1
    lines = sentence("fails", "").splitlines()[1:]
    assert next(found.predict(lines)).text.startswith("neg\t")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("(1 a)\n(1 b)\n", "expected nodes of at least two classes, got '1'"),
        ("(1 a)\n", "valid_fraction=0.1 of 1 tree leaves none to learn from"),
        ("(1 (2 a)\n", "line 1: the tree that starts here is not closed"),
    ],
)
def test_data_that_cannot_be_used_is_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "a.txt").write_text(content * (1 if "tree" in told else 10))
    (tmp_path / "r.yaml").write_text(
        f"task: tree-classification\ndata: {{train: {tmp_path}/a.txt}}\ntrain: {{max_epochs: 1}}\n"
    )
    with pytest.raises(DataError, match=told):
        es.train(tmp_path / "r.yaml", tmp_path / "run", quietly)


def test_labels_out_of_range_are_told_with_their_line(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    (tmp_path / "test.txt").write_text("(1 good)\n(3 (7 good) (1 bad))\n")
    with pytest.raises(
        DataError, match=r"data\.test: the tree of line 2 has a node of the class '7', which.*: it knows '1'"
    ):
        es.train(path, tmp_path / "run", quietly, overrides=SMALL)
    (tmp_path / "test.txt").write_text("(1 good)\n(3 (1 good) (1 bad) (1 bad))\n")
    with pytest.raises(DataError, match=r"data\.test, the tree of line 2: NaryTreeLSTM expected at most 2 children"):
        es.train(path, tmp_path / "run", quietly, overrides=SMALL)
    (tmp_path / "test.txt").write_text("( (1 good))\n")
    with pytest.raises(DataError, match=r"data\.test: expected trees with a class at their root; none has one"):
        es.train(path, tmp_path / "run", quietly, overrides=SMALL)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("NaryTreeLTSM", r"expected one of ChildSumTreeGRU.*got 'NaryTreeLTSM'; did you mean NaryTreeLSTM\?"),
        ({"type": "NaryTreeLSTM", "arty": 3}, r"NaryTreeLSTM fails: .*arty.* Its options: arity"),
        ({"arity": 3}, "got no type"),
    ],
)
def test_a_composition_that_cannot_be_made_is_told(cell: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.cell: .*{told}"):
        make_composition(cell, 4, 3, no_code)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.tracker=GRUU"], r"model\.tracker: there is no cell 'GRUU'; did you mean GRU\?"),
        (["model.tracker=GRU", "model.cell=MVRNN"], r"model\.tracker: ShiftReduce\(MVRNN\): reads no inputs of inner"),
        (["model.tracker={size: 3}"], r"model\.tracker: expected \{type: NAME, .*\}; got no type"),
    ],
)
def test_a_tracker_that_cannot_be_made_is_told(overrides: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        load_task(recipe(tmp_path), [*SMALL, *overrides])


def test_a_composition_of_ones_own_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import everstep as es\n"
        "class Mine(es.TreeRNN):\n    def __init__(self, d, h):\n        super().__init__(d, h, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = es.train(
        recipe(tmp_path), tmp_path / "run", quietly, overrides=[*SMALL, "model.cell=mine.py:Mine", "train.max_epochs=1"]
    )
    assert type(found.model.tree.cell).__name__ == "Mine"
    with pytest.raises(RunError, match="--trust-code"):
        es.load(tmp_path / "run")


def test_damaged_words_are_told(run: es.Run, tmp_path: Path) -> None:
    from everstep.runs.tree_data import read_words

    for content in (b"[]", b'{"a": 1}', b'{"<unk>": -1}', b"{"):
        (tmp_path / "words.json").write_bytes(content)
        with pytest.raises(RunError, match=r"words\.json: (missing or damaged|expected words with their counts)"):
            read_words(tmp_path / "words.json")
    assert read_words(run.path / "words.json")["not"] > 100

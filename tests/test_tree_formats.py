"""Trees as JSON and as dependencies, their way back, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everstep as es
from everstep.data import parse_tree
from everstep.data.readers.dependencies import dependencies
from everstep.data.readers.tree_formats import read_any_trees, relabelled, trees_in
from everstep.errors import DataError


def row(number: int, word: str, head: int | str, relation: str = "dep") -> str:
    return "\t".join([str(number), word, "_", "X", "_", "_", str(head), relation, "_", "_"])


SENTENCE = [
    "# sent_id = 1",
    "# label = good",
    "1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_",
    row(1, "do", 3, "aux"),
    row(2, "n't", 3, "advmod"),
    row(3, "go", 0, "root"),
    "3.1\twent\t_\t_\t_\t_\t_\t_\t_\t_",
    row(4, "8\xa01/2", 3, "obj"),
]


def test_a_sentence_is_a_tree_of_its_words() -> None:
    first, second = dependencies(["\ufeff" + SENTENCE[0], *SENTENCE[1:], "", row(1, "Yes", 0) + "\r"], "x")
    assert first.words == ("do", "n't", "go", "8\xa01/2")
    assert first.heads == (2, 2, -1, 2)
    assert first.children == ((), (), (0, 1, 3), ())
    assert first.labels == ("", "", "good", "")
    assert (first.relations[2], first.label, first.line, len(first)) == ("root", "good", 3, 4)
    assert (second.words, second.label, second.line) == (("Yes",), "", 10)
    forest = es.Forest.of([first, second])
    assert (forest.inputs, forest.roots.tolist()) == (5, [2, 4])


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["a b"], "line 1: expected ten columns separated by tabs, as CoNLL-U has, got 1"),
        ([row(1, "a", 0), row(3, "b", 1)], "line 2: expected word number 2, got '3'"),
        ([row(1, " ", 0)], "line 1: the word is empty"),
        ([row(1, "a", "_")], r"line 1: expected the number of a head \(column 7\), got '_'"),
        ([row(1, "a", 0), row(2, "b", 7)], "line 2: the head 7 is none of the sentence's 2 words"),
        (["", row(1, "a", 0), row(2, "b", 0)], "line 2: expected one root in the sentence .* found it at lines 2, 3"),
        ([row(1, "a", 2), row(2, "b", 1)], "line 1: expected one root .* found it at no word"),
        ([row(1, "a", 0), row(2, "b", 3), row(3, "c", 2)], "line 1: words of the sentence .* in a circle"),
    ],
)
def test_what_are_no_dependencies_is_told_with_its_line(lines: list[str], told: str) -> None:
    with pytest.raises(DataError, match=f"x, {told}"):
        list(dependencies(lines, "x"))


def test_trees_as_json_are_those_in_brackets(tmp_path: Path) -> None:
    tree = {"label": 3, "children": [{"label": "2", "word": "(a)"}, {"children": [{"label": "1", "word": "b"}]}]}
    path = tmp_path / "trees.jsonl.gz"
    path.write_bytes(gzip.compress(f"\ufeff{json.dumps(tree)}\n\n{json.dumps({'word': 'x'})}\n".encode()))
    first, second = read_any_trees([path])
    assert first.labels == ("2", "1", "", "3")
    assert first.words == ("(a)", "b", None, None)
    assert first.children == ((), (), (1,), (0, 2))
    assert first.spans == ((0, 1), (1, 2), (1, 2), (0, 2))  # type: ignore[union-attr]
    assert (second.words, second.label, second.line) == (("x",), "", 3)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "is no JSON"),
        ('{"word": "a", "word": NaN}', "is no JSON"),
        ("[1]", r"expected a node, .* got \[1\]"),
        ('{"label": "3"}', "has neither a word nor children"),
        ('{"children": {}}', 'expected a list at "children", got {}'),
        ('{"children": [{"word": "a"}, {"children": []}]}', "has neither a word nor children"),
        ('{"word": 3}', 'expected a word as text at "word", got 3'),
        ('{"word": " "}', 'expected a word as text at "word"'),
        ('{"word": "a", "label": true}', 'expected text or a number at "label", got true'),
        ('{"children": [' * 3000, "is too deep|is no JSON"),
    ],
)
def test_what_is_no_json_tree_is_told_with_its_line(line: str, told: str) -> None:
    with pytest.raises(DataError, match=f"x, line 2: .*{told}"):
        list(trees_in(["", line], "jsonl", "x"))


def test_the_format_is_found_by_name_or_first_line(tmp_path: Path) -> None:
    texts = {
        "brackets": "\n (3 (2 a) (4 b))\n",
        "jsonl": '{"word": "a"}',
        "conllu": "\n".join(SENTENCE),
    }
    for format, text in texts.items():
        for name in (f"a.{format}", "a.txt"):
            (tmp_path / name).write_text(text)
            (tree,) = read_any_trees([tmp_path / name])
            assert tree.words == next(trees_in(text.splitlines(), format, "x")).words  # type: ignore[arg-type]
    (tmp_path / "a.txt").write_text("(3\t(2 a)\t(4 b))\n")
    assert read_any_trees([tmp_path / "a.txt"])[0].words == ("a", "b", None)
    (tmp_path / "a.txt").write_text("# nothing")
    with pytest.raises(DataError, match="holds no tree; expected trees in the format conllu"):
        read_any_trees([tmp_path / "a.txt"])
    (tmp_path / "a.txt").write_text("a lovely film")
    with pytest.raises(DataError, match=r"line 1: expected a tree, which starts with '\(', got 'a'"):
        read_any_trees([tmp_path / "a.txt"])


WORDS = st.text(st.characters(exclude_characters="() \t\n\r\\", exclude_categories=["Cs"]), min_size=1, max_size=4)
NODES: Any = st.recursive(
    st.fixed_dictionaries({"label": WORDS, "word": WORDS.filter(lambda word: word.strip() and word[0] != "-")}),
    lambda below: st.fixed_dictionaries({"label": WORDS, "children": st.lists(below, min_size=1, max_size=3)}),
    max_leaves=10,
)


@settings(deadline=None)
@given(NODES)
def test_trees_go_and_come_back(node: dict[str, Any]) -> None:
    line = json.dumps(node)
    (tree,) = trees_in([line], "jsonl", "x")
    assert json.loads(relabelled(tree, tree.labels, "jsonl")) == node  # type: ignore[arg-type]
    again = parse_tree(relabelled(tree, tree.labels, "brackets"))  # type: ignore[arg-type]
    assert (again.words, again.labels, again.children) == (tree.words, tree.labels, tree.children)


def test_universal_dependencies_are_all_trees(shared_data: Path) -> None:
    trees = read_any_trees([shared_data / "ud_english_ewt" / "en_ewt-ud-dev.conllu.gz"])
    assert len(trees) == 2001
    forest = es.Forest.of(trees)
    assert forest.trees == 2001
    assert forest.nodes == forest.inputs == sum(map(len, trees)) == 25147


def test_the_stanford_trees_are_binary_and_every_word_is_a_leaf(shared_data: Path) -> None:
    forest = es.Forest.of(read_any_trees([shared_data / "sst" / "dev.txt"]))
    assert (forest.trees, forest.nodes, forest.fewest_children, forest.most_children) == (1101, 41447, 2, 2)
    assert forest.inputs == forest.nodes - forest.inner == (forest.nodes + forest.trees) // 2
    assert not forest.inner_fed

"""Trees in brackets: their tables, their phrases, deep ones, and every way in which brackets can be wrong."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.readers.trees import LabelledTree, parse_tree, read_trees
from everstep.errors import DataError


def test_a_tree_is_a_table_whose_children_come_first():
    tree = parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))")
    assert tree.labels == ("2", "3", "2", "4", "3")
    assert tree.words == ("a", "lovely", "film", None, None)
    assert tree.children == ((), (), (), (1, 2), (0, 3))
    assert tree.spans == ((0, 1), (1, 2), (2, 3), (1, 3), (0, 3))
    assert (tree.label, tree.leaves, len(tree)) == ("3", ["a", "lovely", "film"], 5)
    assert [(phrase.label, " ".join(phrase.words)) for phrase in tree.phrases()] == [
        ("2", "a"),
        ("3", "lovely"),
        ("2", "film"),
        ("4", "lovely film"),
        ("3", "a lovely film"),
    ]


def test_files_hold_trees_over_several_lines(tmp_path):
    path = tmp_path / "a.mrg.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf\r\n( (S (NP it)\r\n   (VP works)) )\r\n(1 a)(2 b)\n\n"))
    trees = read_trees([path, path])
    assert [(tree.label, tree.line, tree.leaves) for tree in trees[:3]] == [
        ("", 2, ["it", "works"]),
        ("1", 4, ["a"]),
        ("2", 4, ["b"]),
    ]
    assert trees[3:] == trees[:3]
    assert trees[0].labels == ("NP", "VP", "S", "")


def test_words_are_split_at_ascii_spaces_alone_and_lose_their_escapes():
    tree = parse_tree("(2 (2 8\xa01\\/2) (2 -LRB-) (2 -RRB-) (2 \\*\\*) (2 x\x85y) (2 -LSB-))")
    assert tree.leaves == ["8\xa01/2", "(", ")", "**", "x\x85y", "["]


def test_deep_trees_need_no_recursion(tmp_path):
    deep = 20_000
    path = tmp_path / "deep.txt"
    path.write_text("(1 (0 a) " * deep + "(2 end)" + ")" * deep + "\n")
    (tree,) = read_trees([path])
    assert len(tree) == 2 * deep + 1
    assert tree.children[-1] == (0, 2 * deep - 1)
    assert tree.leaves == ["a"] * deep + ["end"]
    assert repr(tree)
    assert tree == read_trees([path])[0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("(1 a)\n(2 (3 b)\n", r"bad\.txt, line 2: .*not closed; expected 1 more '\)'"),
        ("(1 a)\n(2 (3 b) (4\n(5 c)\n", r"line 2: .*expected 2 more"),
        ("(1 a)\n\n(2 b))\n", r"line 3: expected a tree, which starts with '\(', got '\)', near '\(2 b\)\)'"),
        ("pos\tgood\n", r"line 1: expected a tree.*got 'pos'"),
        ("(1 a b)\n", r"line 1: the word 'b' comes after the word 'a'"),
        ("(1 (2 a) b)\n", r"line 1: the word 'b' comes after children"),
        ("(1 a (2 b))\n", r"line 1: a node holds the word 'a' and a child"),
        ("(1 (2 a) ())\n", r"line 1: the node \(\) is empty"),
        ("(1 (2))\n", r"line 1: the node \(2\) is empty; expected a word or children"),
        ("\n \n", r"holds no tree"),
        ("", r"holds no text"),
    ],
)
def test_what_is_no_tree_is_told_with_its_line(tmp_path, content, told):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=told):
        read_trees([path])


def test_a_string_holds_one_tree():
    with pytest.raises(DataError, match="expected one tree, got 2"):
        parse_tree("(1 a) (2 b)")


WORDS = st.text(st.characters(exclude_characters="() \t\n\r\\-"), min_size=1, max_size=4)
SHAPES = st.recursive(
    st.tuples(WORDS, WORDS), lambda child: st.tuples(WORDS, st.lists(child, min_size=1, max_size=3)), max_leaves=12
)


def written(shape: object) -> str:
    label, below = shape  # type: ignore[misc]
    return f"({label} {below if isinstance(below, str) else ' '.join(map(written, below))})"


def rebuilt(tree: LabelledTree) -> str:
    """The brackets of a tree, from its table alone."""
    texts: list[str] = []
    for label, word, children in zip(tree.labels, tree.words, tree.children, strict=True):
        texts.append(f"({label} {word if word is not None else ' '.join(texts[child] for child in children)})")
    return texts[-1]


@settings(deadline=None)
@given(SHAPES)
def test_a_tree_is_all_that_its_brackets_say(shape):
    text = written(shape)
    tree = parse_tree(text)
    assert rebuilt(tree) == text
    assert all(
        len(phrase.words) == last - first for phrase, (first, last) in zip(tree.phrases(), tree.spans, strict=True)
    )


def test_the_stanford_trees_are_all_there(shared_data):
    folder = shared_data / "sst"
    counts = [
        sum(tree.label != "2" for tree in read_trees([folder / name]))
        for name in ("train.txt.gz", "dev.txt", "test.txt")
    ]
    assert counts == [6920, 872, 1821]
    trees = read_trees([folder / "train.txt.gz"])
    assert len(trees) == 8544
    assert sum("\xa0" in word for tree in trees for word in tree.leaves) == 3
    assert sum(word in "()" for tree in trees for word in tree.leaves) == 712

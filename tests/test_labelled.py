"""Labelled texts: every format, and every way in which their files can be wrong."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.readers.labelled import Labelled, read_labelled
from everstep.errors import DataError

TEXTS, LABELS = ["good fun", "dull , long", "fine"], ["pos", "neg", "very pos"]
TSV = "text\tlabel\ngood fun\tpos\ndull , long\tneg\nfine\tvery pos\n"
CSV = 'id,label,text\n1,pos,good fun\n2,neg,"dull , long"\n3,very pos,fine\n'
JSONL = "".join(json.dumps({"label": b, "text": a}) + "\n" for a, b in zip(TEXTS, LABELS, strict=True))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(tmp_path: Path, content: bytes | str, name: str = "a.tsv", **options: str) -> Labelled:
    return read_labelled(write(tmp_path / name, content), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content"), [("a.tsv", TSV), ("a.csv", CSV), ("a.jsonl", JSONL), ("a", TSV), ("b", JSONL)]
)
@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
def test_tables_and_json_lines(tmp_path, name, content, packed):
    stored = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packed](content.encode())
    data = read(tmp_path, stored, name + packed)
    assert (data.texts, data.labels, data.skipped, data.notes) == (TEXTS, LABELS, {}, [])
    assert data.classes == ("neg", "pos", "very pos")
    assert data.ids().tolist() == [1, 0, 2]
    start = 1 if content == JSONL else 2
    assert data.place(2) == f"{tmp_path / (name + packed)}, line {start + 2}"


def test_fasttext(tmp_path):
    content = "__label__pos , good  fun\n\n__label__neg\tdull __label\nfine __label__pos then __label\n__label__neg \n"
    data = read(tmp_path, content, "a.txt")
    assert data.texts == [", good  fun", "dull __label", "fine then __label"]
    assert data.labels == ["pos", "neg", "pos"]
    assert data.skipped == {"blank line": 1, "empty text": 1}
    assert data.place(1) == f"{tmp_path / 'a.txt'}, line 3"


def test_a_folder_per_class(tmp_path):
    write(tmp_path / "pos" / "b.txt", "good\r\nfun\r\n")
    write(tmp_path / "pos" / "a.txt.gz", gzip.compress(b"fine"))
    write(tmp_path / "pos" / ".hidden", "no")
    write(tmp_path / "neg" / "deep" / "c", "\ufeffdull")
    write(tmp_path / "neg" / "d", "")
    write(tmp_path / "README", "about")
    data = read_labelled(tmp_path)
    assert data.texts == ["dull", "fine", "good\nfun"]
    assert data.labels == ["neg", "pos", "pos"]
    assert data.skipped == {"empty text": 1, "file outside of a class's folder": 1}
    assert [data.place(i) for i in range(3)] == [
        str(tmp_path / name) for name in ("neg/deep/c", "pos/a.txt.gz", "pos/b.txt")
    ]


def test_several_files_of_several_formats_with_globs(tmp_path):
    write(tmp_path / "b.tsv", TSV)
    write(tmp_path / "a.csv", CSV)
    write(tmp_path / "more" / "pos" / "x", "nice")
    data = read_labelled([f"{tmp_path}/*.csv", f"{tmp_path}/b.tsv", tmp_path / "more"])
    assert data.texts == [*TEXTS, *TEXTS, "nice"]
    assert [data.place(index) for index in (0, 3, 6)] == [
        f"{tmp_path}/a.csv, line 2",
        f"{tmp_path}/b.tsv, line 2",
        f"{tmp_path}/more/pos/x",
    ]


def test_quoted_newlines_commas_and_marks_of_csv(tmp_path):
    content = 'text,label\r\n"a ""b"",\r\nand c",pos\r\n\r\nplain,"ne,g"\r\n'
    data = read(tmp_path, content, "a.csv")
    assert (data.texts, data.labels) == (['a "b",\nand c', "plain"], ["pos", "ne,g"])
    assert data.skipped == {"blank line": 1}
    assert data.place(1).endswith("line 5")


def test_quotation_marks_of_tsv_are_characters(tmp_path):
    data = read(tmp_path, 'text\tlabel\n"so"\tpos\n"open\tneg\n')
    assert data.texts == ['"so"', '"open']


def test_a_field_may_be_long(tmp_path):
    before = csv.field_size_limit()
    data = read(tmp_path, f"text,label\n{'x ' * 200_000},a\ny,b\n", "a.csv")
    assert len(data.texts[0]) == 400_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_columns_by_number(tmp_path, name):
    parted = "\t" if name == "a.tsv" else ","
    rows = f"pos{parted}good{parted}1\nneg{parted}bad{parted}0\n"
    data = read(tmp_path, rows, name, text="1", label="0")
    assert (data.texts, data.labels) == (["good", "bad"], ["pos", "neg"])
    assert data.place(0).endswith("line 1")
    headed = read(tmp_path, f"polarity{parted}said{parted}n\n{rows}", name, text="said", label="0")
    assert (headed.texts, headed.labels) == (data.texts, data.labels)
    by_name = read(tmp_path, f"0{parted}said{parted}2\n{rows}", name, text="said", label="2")
    assert by_name.labels == ["1", "0"]


def test_named_columns(tmp_path):
    data = read(
        tmp_path,
        '{"stars": 5, "review": "good"}\n{"stars": 1.5, "review": "bad"}\n',
        "a.jsonl",
        text="review",
        label="stars",
    )
    assert (data.texts, data.labels) == (["good", "bad"], ["5", "1.5"])


def test_byte_order_mark_line_ends_and_encodings(tmp_path):
    data = read(tmp_path, b"\xef\xbb\xbf" + TSV.replace("\n", "\r\n").encode())
    assert (data.texts, data.labels) == (TEXTS, LABELS)
    assert read(tmp_path, TSV.replace("fine", "schön").encode("utf-16"), encoding="utf-16").texts[2] == "schön"
    with pytest.raises(DataError, match=r"a\.tsv: byte 14 .*, in line 2, is not utf-8 text .*data\.encoding=latin-1"):
        read(tmp_path, "text\tlabel\nschön\ta\n".encode("latin-1"))


def test_empty_texts_are_left_out_and_counted(tmp_path):
    data = read(tmp_path, "text\tlabel\n\tpos\n \u3000\tneg\na\tpos\n\nb\tneg\n \n")
    assert (data.texts, data.skipped) == (["a", "b"], {"empty text": 2, "blank line": 2})
    assert len(data) == 2


def test_labels_that_are_almost_alike_are_noted(tmp_path):
    data = read(tmp_path, "text\tlabel\na\tPos\nb\tpos\nc\tpos \nd\tneg\ne\tpos\n")
    assert data.classes == ("Pos", "neg", "pos", "pos ")
    (note,) = data.notes
    assert "'Pos' (1), 'pos' (2), 'pos ' (1)" in note


def test_ids_by_the_classes_of_training(tmp_path):
    data = read(tmp_path, TSV)
    assert data.ids(["very pos", "none", "neg", "pos"]).tolist() == [3, 2, 0]
    with pytest.raises(
        DataError,
        match=r"line 3: the class 'neg' \(and 1 more such classes\) .* the 2 known.*'nege', 'pos'.*nearest is 'nege'",
    ):
        data.ids(["nege", "pos"])


def test_some_are_held_out_of_each_class(tmp_path):
    rows = "".join(f"text {n}\t{'a' if n < 60 else 'b' if n < 99 else 'rare'}\n" for n in range(100))
    data = read(tmp_path, "text\tlabel\n" + rows)
    left, held = data.held_out(0.1, seed=1)
    assert [held.labels.count(name) for name in data.classes] == [6, 4, 0]
    assert sorted(left.texts + held.texts) == sorted(data.texts)
    assert left.classes == data.classes
    assert held.texts == sorted(held.texts, key=data.texts.index)
    assert data.held_out(0.1, seed=1)[1] == held
    assert data.held_out(0.1, seed=2)[1] != held
    index = data.texts.index(held.texts[-1])
    assert held.place(len(held) - 1) == data.place(index)
    assert len(data.held_out(0.001, seed=1)[1]) == 1
    with pytest.raises(DataError, match=r"no class has two texts"):
        left.select([0, len(left) - 1]).held_out(0.5, seed=1)


def test_one_class_is_enough_for_examples_to_be_measured(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\tpos\n")
    assert read_labelled(path, fewest_classes=1).classes == ("pos",)


def test_ten_thousand_classes(tmp_path):
    count = 10_000
    data = read(tmp_path, "text\tlabel\n" + "".join(f"text {n}\tclass {n % count:05}\n" for n in range(5 * count)))
    assert len(data.classes) == count
    assert data.ids().tolist() == [n % count for n in range(5 * count)]
    assert data.notes == []
    assert len({id(label) for label in data.labels}) == count


HEADED = "text\tlabel\n"
BAD = [
    ("a.tsv", HEADED + "a\tb\tc\n", r"a\.tsv, line 2: expected 2 fields separated by tabs \('text', 'label'\).*got 3"),
    ("a.tsv", HEADED + "a\tb\nonly\n", r"line 3: expected 2 fields.*got 1, of which the last is 'only'"),
    ("a.csv", "text,label\na,b\na, b,c\n", r"line 3: expected 2 fields separated by commas.*got 3.*quotation marks"),
    ("a.csv", 'text,label\nx,a\n"so\nit\ngoes,b\n', r"line 3: in the row that starts here a field opens a quotation"),
    ("a.csv", 'text,label\n"so" it,b\n', r"line 2: in the row that starts here quotation marks do not match"),
    ("a.tsv", "good\tpos\nbad\tneg\n", r"line 1: expected a header with the columns 'text'.*got 2 columns: 'good'"),
    ("a.tsv", "good\tpos\nbad\tneg\n", r"columns: 'good', 'pos'.*no header.*data\.text=0 data\.label=1"),
    ("a.tsv", "Text\tlabel\nbad\tneg\n", r"columns: 'Text', 'label'.*data\.text='Text'"),
    ("a.csv", "text;label\nbad;neg\n", r"got 1 column: 'text;label'.*set data\.format if they are not"),
    ("a.tsv", "text\ttext\tlabel\na\tb\tc\n", r"two columns are named 'text'"),
    ("a.tsv", HEADED, r"no labelled text"),
    ("a.tsv", "", r"a\.tsv: the file is empty"),
    ("a.tsv", "\ufeff", r"holds no text"),
    ("a.tsv", HEADED + "\tpos\n\n", r"no labelled text; left out: 1 × empty text, 1 × blank line"),
    ("a.tsv", HEADED + "a\tpos\nb\tpos\n", r"expected at least 2 classes, got 1: 'pos' \(of 2 texts\)"),
    ("a.tsv", HEADED + "a\tpos\nb\t\n", r"line 3: the label is empty"),
    ("a.tsv", HEADED + "a\tpos\nb\t \n", r"line 3: the label is empty"),
    ("a.csv", 'text,label\na,"p\nos"\n', r"line 2: the class name 'p\\nos' holds a tab, a line break"),
    ("a.csv", 'text,label\na,"p\tos"\n', r"line 2: the class name 'p\\tos' holds a tab"),
    ("a.tsv", HEADED + "a\tpo\u2028s\n", r"line 2: the class name"),
    ("a.tsv", HEADED + "a\0\tpos\n", r"looks binary"),
    ("a.tsv", HEADED + "a\tpos\n" * 300_000 + "b\0\tneg\n", r"line 300002: holds a NUL byte"),
    ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "a" "label"}\n', r"line 2: is no JSON \(.*, at character 14"),
    ("a.jsonl", "[\n", r"line 1: is no JSON.*array over many lines is not read"),
    ("a.jsonl", '["a", "b"]\n', r"line 1: expected one JSON object.*got \[\"a\", \"b\"\]"),
    ("a.jsonl", '{"text": "a", "lable": 1}\n', r"line 1: expected a key 'label', got 'text', 'lable'; .*data\.label="),
    ("a.jsonl", '{"text": 1, "label": 1}\n', r"expected a string at 'text' \(data\.text\), got 1"),
    ("a.jsonl", '{"text": "a", "label": null}\n', r"expected a string or a number at 'label' .*, got null"),
    ("a.jsonl", '{"text": "a", "label": true}\n', r"expected a string or a number at 'label' .*, got true"),
    ("a.jsonl", '{"text": "a", "label": {"x": 1}}\n', r"got \{\"x\": 1\}"),
    ("a.jsonl", '{"text": "a", "label": ["x", "y"]}\n', r"several labels \(\[\"x\", \"y\"\]\) .*or data\.label_sep"),
    ("a.jsonl", '{"text": "a", "label": NaN}\n', r"line 1: is no JSON \(NaN is no JSON number\)"),
    ("a.jsonl", '{"text": "\\ud800", "label": "a"}\n', r"line 1: half a surrogate pair"),
    ("a.jsonl", "[" * 100_000 + "\n", r"line 1: is no JSON"),
    ("a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n", r"line 1: is no JSON"),
    ("a.txt", "__label__a x\n__label__a __label__b x\n", r"line 2: expected one label, got 2: __label__a __label__b"),
    ("a.txt", "__label__a x __label__b\n", r"line 1: expected one label, got 2.*set data\.label_separator"),
    ("a.txt", "__label__a x\nno label\n", r"line 2: expected one label, got 0: 'no label'; .*a label, __label__NAME"),
    ("a.txt", "__label__a x\n__label__ y\n", r"line 2: the label is empty"),
    ("a.txt", "good film\n", r"cannot tell its format .*by its first line, 'good film\\n'.*set data\.format"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "told"), BAD, ids=range(len(BAD)))
def test_bad_files_are_told_with_their_line(tmp_path, name, content, told):
    with pytest.raises(DataError, match=told) as caught:
        read(tmp_path, content, name)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value)) < 700


def test_bad_options(tmp_path):
    path = write(tmp_path / "a.tsv", TSV)
    with pytest.raises(DataError, match=r"data\.format='xls': expected one of auto, tsv"):
        read_labelled(path, format="xls")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected a column 7 \(data\.label, counted from 0\), got 2 columns"):
        read_labelled(path, text="0", label="7")
    with pytest.raises(DataError, match=r"expected a folder that holds a folder per class"):
        read_labelled(path, format="folder")
    with pytest.raises(DataError, match=r"expected a file \(data\.format=csv\), got a folder"):
        read_labelled(tmp_path, format="csv")
    with pytest.raises(DataError, match=r"got one with 1 files and no folder"):
        read_labelled(tmp_path)
    (tmp_path / "pos").mkdir()
    with pytest.raises(DataError, match=r"pos: a class's folder without a file"):
        read_labelled(tmp_path)
    write(tmp_path / "pos" / "a", b"\xff")
    with pytest.raises(DataError, match=r"pos/a: byte 0"):
        read_labelled(tmp_path)
    write(tmp_path / "pos" / "a", b"a" * (2 << 20) + b"\0")
    with pytest.raises(DataError, match=r"pos/a: holds a NUL byte"):
        read_labelled(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        read_labelled(tmp_path / "none.tsv")


ANY = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]))
NAME = st.text(st.characters(categories=["L", "N", "P"]), min_size=1)


@settings(deadline=None)
@given(st.lists(st.tuples(ANY.filter(lambda text: bool(text.strip())), NAME), min_size=1))
def test_what_the_csv_module_and_json_write_is_read_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("written")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *rows])
    write(folder / "a.jsonl", "".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    for name in ("a.csv", "a.jsonl"):
        data = read_labelled(folder / name, fewest_classes=1)
        assert list(zip(data.texts, data.labels, strict=True)) == rows


def test_reading_labels_needs_no_torch():
    code = "import sys, everstep.data.readers.labelled, everstep.data.readers.trees; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


MARKS = ["\t", ",", "\n", "\r\n", '"', "{", "}", "[", ":", " ", "\0", "\ufeff", "\\ud800", "\x85", "é", "1", "null"]
PIECES = st.sampled_from([*MARKS, "text", "label", '"text": "a", "label": "b"', "__label__", "a"])


@settings(deadline=None)
@given(
    st.one_of(st.binary(max_size=30), st.lists(PIECES, max_size=20).map(lambda pieces: "".join(pieces).encode())),
    st.sampled_from(["tsv", "csv", "jsonl", "fasttext", "auto"]),
    st.sampled_from(["", "text\tlabel\n", "text,label\n"]),
)
def test_whatever_a_file_holds_it_is_read_or_told(tmp_path_factory, content, format, header):
    path = write(tmp_path_factory.getbasetemp() / "whatever.txt", header.encode() + content)
    try:
        data = read_labelled(path, format=format, fewest_classes=1)
    except DataError:
        return
    assert len(data) == len(data.labels) > 0
    assert all(text.strip() and label.strip() for text, label in zip(data.texts, data.labels, strict=True))
    assert data.place(len(data) - 1).startswith(f"{path}, line ")
    assert "".join(data.texts + data.labels).encode()


# ------------------------------------------------------------------------------------------- labels beside their texts


def test_a_file_per_class(tmp_path):
    write(tmp_path / "mpqa.pos", "good\n\n fun\x85here\n".encode("latin-1"))
    write(tmp_path / "mpqa.neg.gz", gzip.compress(b"dull"))
    data = read_labelled([tmp_path / "mpqa.pos", tmp_path / "mpqa.neg.gz"], format="lines", encoding="latin-1")
    assert list(zip(data.texts, data.labels, strict=True)) == [
        ("good", "pos"),
        (" fun\x85here", "pos"),
        ("dull", "neg"),
    ]
    assert data.skipped == {"blank line": 1}
    assert data.place(1) == f"{tmp_path / 'mpqa.pos'}, line 3"


def test_labels_in_another_file(tmp_path):
    write(tmp_path / "text" / "train_text.txt.gz", gzip.compress(b"good\r\ndull \r\n"))
    write(tmp_path / "text" / "train_labels.txt", "1\n0\n")
    data = read_labelled(tmp_path / "text" / "train_text.txt.gz", format="parallel", label="labels")
    assert list(zip(data.texts, data.labels, strict=True)) == [("good", "1"), ("dull ", "0")]
    write(tmp_path / "text" / "train_labels.txt", "1\n0\n1\n")
    with pytest.raises(
        DataError, match=r"train_text\.txt\.gz has 2 lines, .*train_labels\.txt has 3; expected as many"
    ):
        read_labelled(tmp_path / "text" / "train_text.txt.gz", format="parallel", label="labels")
    with pytest.raises(DataError, match=r"one a line, in .*train_label\.txt \(or \.gz, \.xz\), which is not there"):
        read_labelled(tmp_path / "text" / "train_text.txt.gz", format="parallel")
    with pytest.raises(DataError, match=r"its name does not hold 'said' \(data\.text\)"):
        read_labelled(tmp_path / "text" / "train_text.txt.gz", format="parallel", text="said")


def test_folds_part_the_texts_alike_in_each_class(tmp_path):
    data = read(tmp_path, HEADED + "".join(f"text {n}\t{'a' if n < 60 else 'b'}\n" for n in range(97)))
    parts = [data.fold(number, 10) for number in range(1, 11)]
    assert sorted(text for _, fold in parts for text in fold.texts) == sorted(data.texts)
    assert {len(fold) for _, fold in parts} == {9, 10}
    assert {fold.labels.count("a") for _, fold in parts} == {6}
    assert all(sorted(rest.texts + fold.texts) == sorted(data.texts) for rest, fold in parts)
    assert data.fold(3, 10) == parts[2]
    assert [int(text.split()[1]) for text in parts[0][1].texts] != list(range(0, 97, 10))  # shuffled
    with pytest.raises(DataError, match=r"expected at least one text a fold, got 97 for 98 folds"):
        data.fold(1, 98)

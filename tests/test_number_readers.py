"""Sequences of numbers from files: every format, and what is refused."""

from __future__ import annotations

import gzip
import importlib
import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import everstep
from everstep.data.readers.labelled_numbers import NOTHING, LabelledNumbers, read_numbers
from everstep.data.readers.number_formats import NumberColumns, NumberFormat, format_of
from everstep.errors import DataError

NAN = float("nan")


def read(path: Path, content: str | bytes, format: NumberFormat = "auto", **columns: Any) -> LabelledNumbers:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_numbers([path], NumberColumns(**columns), format)


def steps(found: LabelledNumbers) -> list[Any]:
    return [one.tolist() for one in found.sequences]


def equal(found: Any, wanted: Any) -> bool:
    return len(found) == len(wanted) and all(
        np.array_equal(np.array(a, float), np.array(b, float), equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )


LONG = "unique_id,step,x,y,label\nb,2,3,4,up\na,1,?,6,7\nb,1,1,,up\n"


def test_a_long_table_is_ordered_by_step(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", LONG)
    assert equal(steps(found), [[[1, NAN], [3, 4]], [[NAN, 6]]])
    assert (found.examples.labels, found.names, found.columns, found.shape) == (
        ["up", "7"],
        ["b", "a"],
        ("x", "y"),
        (2,),
    )
    assert [found.examples.place(row).split(", ")[1] for row in (0, 1)] == ["line 2", "line 3"]
    only = read(tmp_path / "a.csv", LONG, values=("y",))
    assert equal(steps(only)[0], [[NAN], [4]])
    named = read(tmp_path / "a.csv", LONG.replace("unique_id", "who").replace("label", "kind"), id="who", label="kind")
    assert equal(steps(named), steps(found))


def test_time_stamps_order_and_unequal_distances_are_told(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "id,time,x,label\n1,2024-01-02,2,a\n1,2024-01-01,1,a\n2,2024-01-01,5,b\n")
    assert equal(steps(found), [[[1], [2]], [[5]]])
    assert not found.examples.notes
    found = read(tmp_path / "a.csv", "id,time,x,label\n1,2024-1,2,a\n1,2024-10,1,a\n1,2024-2,3,a\n2,2024-01,5,b\n")
    assert equal(steps(found), [[[2], [3], [1]], [[5]]])
    assert "unequal distances" in found.examples.notes[0]
    for times in (("1/2/2024", "12/31/2023"), ("9:00", "10:00")):  # by their letters they would be in another order
        with pytest.raises(DataError, match=f"expected numbers in column 'time', or times such as.*got '{times[0]}'"):
            read(tmp_path / "a.csv", f"id,time,x,label\n1,{times[0]},2,a\n1,{times[1]},1,a\n2,{times[0]},5,b\n")
    found = read(tmp_path / "a.csv", "id,t,x,label\n1,0,1,a\n1,1,2,a\n1,5,2,a\n2,0,1,b\n")
    assert "unequal distances" in found.examples.notes[0]


def test_columns_that_are_no_values_and_a_step_that_is_one(tmp_path: Path) -> None:
    numbered = "".join(f"{place or ''},{line}\n" for place, line in enumerate(LONG.splitlines()))
    assert read(tmp_path / "a.csv", numbered).columns == ("x", "y")  # a column without a name numbers the rows
    warm = "unique_id,t,x,label\na,5,2,u\na,5,3,u\nb,1,3,v\n"
    assert steps(read(tmp_path / "a.csv", warm, values=("t", "x"))) == [[[5, 2], [5, 3]], [[1, 3]]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LONG.replace("b,1,1,,up", "b,1,1,,down"), r"row 3 of its data: .*one class.*'b' has 'up' and 'down'"),
        (LONG.replace("b,1,1,,up", "b,2,1,,up"), r"row 3 of its data: expected each step of a sequence once"),
        (LONG.replace(",4,up", ",inf,up"), r"row 1 of its data: expected finite numbers in column 'y'"),
        (LONG.replace("unique_id", "who"), r"expected a column that names the sequence.*data\.format=rows"),
        (LONG.replace("label", "class"), r"expected the column 'label'"),
        (LONG.replace("a,1,?,6,7\n", ""), r"expected at least 2 classes, got 1: 'up'"),
        (LONG.replace("b,2,3,4,up", "b,2,3,4,up,9"), r"cannot be read as a table"),
        ("unique_id,word,label\n1,a,b\n", r"expected a column of numbers"),
    ],
)
def test_long_tables_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.csv", text)


def test_a_sequence_a_row_with_and_without_a_header(tmp_path: Path) -> None:
    plain = read(tmp_path / "a.txt", " 1, 2, 3, 4, up\n5,6,7,8,down\n", "rows", label="-1", step_size=2)
    assert steps(plain) == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert plain.examples.labels == ["up", "down"]
    headed = read(tmp_path / "a.csv", "label,a,b\nup,1,2\ndown,?,3\nleft,4,\n", "rows")
    assert equal(steps(headed), [[[1], [2]], [[NAN], [3]], [[4]]])  # a missing end is no step
    some = read(tmp_path / "a.csv", "label,a,b\nup,1,2\ndown,3,4\n", "rows", values=("b",))
    assert steps(some) == [[[2]], [[4]]]
    spaced = read(tmp_path / "a.txt", "0   1.5  2\n1   3  4\n", "rows", label="0")
    assert steps(spaced) == [[[1.5], [2]], [[3], [4]]]
    numbered = read(tmp_path / "a.csv", "0,1,label\n1,2,a\n3,4,b\n", "rows")
    assert steps(numbered) == [[[1], [2]], [[3], [4]]]
    named = read(tmp_path / "a.csv", "s1,1,2,up\ns2,3,4,down\n", "rows", label="-1", values=("1", "2"))
    assert steps(named) == [[[1], [2]], [[3], [4]]]  # two texts in the first row, which is no header yet
    index = read(tmp_path / "a.csv", ",a,b,label\n0,1,2,u\n1,3,4,v\n", "rows")
    assert steps(index) == [[[1], [2]], [[3], [4]]]


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("1,2,3,a\n1,2,b\n", {"label": "3"}, "line 2: expected 4 fields, as in the first line; got 3"),
        ("1,2,3,a\n1,2,3,b\n", {"label": "3", "step_size": 2}, r"line 1: expected 2 numbers a step"),
        ("1,2,3,4\n1,x,3,4\n", {"label": "3"}, "line 2: expected a number, or . where it is missing; got 'x'"),
        ("1,2,3,4\n1,inf,3,4\n", {"label": "3"}, "line 2: expected finite numbers"),
        ("1,2,3,4\n", {"label": "label"}, "expected the column 'label'.*4 columns.*-1 for the last"),
        ("1,2,3,4\n", {"label": "4"}, "expected the column '4'"),
        ("", {"label": "0"}, "expected the column '0'"),
    ],
)
def test_rows_that_are_refused(text: str, columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.txt", text, "rows", **columns)


def saved(path: Path, **arrays: Any) -> LabelledNumbers:
    np.savez(path, **arrays)
    return read_numbers([path])


def test_arrays_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    x = np.arange(12.0).reshape(2, 3, 2)
    found = saved(path, x=x, y=np.array([1.0, 2.5]), lengths=np.array([3, 1]))
    assert steps(found) == [x[0].tolist(), x[1, :1].tolist()]
    assert found.examples.labels == ["1", "2.5"]
    x[1, 2] = NAN
    x[0, 1, 0] = NAN
    assert [len(one) for one in saved(path, x=x, y=np.array(["a", "b"])).sequences] == [3, 2]
    assert saved(path, X=x[..., 0], y=[0, 1]).shape == (1,)
    assert saved(path, x=x, y=np.array([[0], [1]]), lengths=[[1], [2]]).examples.labels == ["0", "1"]
    assert saved(path, x=x, y=np.array([b"a", b"b"])).examples.labels == ["a", "b"]
    clips = saved(path, x=np.zeros((2, 3, 4, 5), np.uint8), label=["a", "b"])
    assert (clips.shape, clips.columns, clips.sequences[0].dtype) == ((4, 5, 1), (), np.uint8)
    assert saved(path, x=np.zeros((2, 3, 4, 5, 3)), y=[0, 1]).shape == (4, 5, 3)


def test_sequences_without_a_number_are_skipped_and_counted(tmp_path: Path) -> None:
    x = np.array([[1.0, 2], [NAN, NAN], [3, 4], [5, 6]])
    found = saved(tmp_path / "a.npz", x=x, y=list("abcd"), lengths=np.array([2, 2, 0, 2]))
    assert steps(found) == [[[1], [2]], [[5], [6]]]
    assert found.examples.skipped == {NOTHING: 2}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros(2)}, r"expected an array x or X \(data\.values\); it has z"),
        ({"x": np.zeros((2, 3))}, r"expected an array label or y or labels \(data\.label\); it has x"),
        ({"x": np.zeros(3), "y": [0, 1, 2]}, "expected numbers .sequences, steps.*got float64 .3,"),
        ({"x": np.array([["a", "b"]] * 2), "y": [0, 1]}, "expected numbers"),
        ({"x": np.array([[1, np.inf], [1, 2]]), "y": [0, 1]}, "sequence 0: expected finite numbers"),
        ({"x": np.zeros((2, 3)), "y": [0]}, "expected as many labels as sequences, 2; got 1"),
        ({"x": np.zeros((2, 3)), "y": [0, 1], "lengths": [3]}, "expected as many lengths as sequences"),
        ({"x": np.zeros((2, 3)), "y": [0, 1], "lengths": [3, 4]}, "expected lengths from 0 to the 3 steps"),
        ({"x": np.zeros((2, 3)), "y": [1, 1]}, "expected at least 2 classes"),
        ({"x": np.zeros((0, 3)), "y": []}, r"expected a sequence or more, of a step or more; got an empty array .0, 3"),
        ({"x": np.zeros((2, 0)), "y": [0, 1]}, r"of a step or more; got an empty array .2, 0"),
        ({"x": np.zeros((2, 3)), "y": 1}, r"expected as many labels as sequences, 2; got an array \(\)"),
        (
            {"x": np.zeros((2, 3)), "y": np.eye(2)},
            "as many labels as sequences, 2; got an array .*place of the larg",
        ),
        ({"x": np.zeros((2, 3)), "y": [NAN, 1]}, "the label is empty"),
        ({"x": np.zeros((2, 3)), "y": [0, 1], "lengths": 3}, r"as many lengths as sequences, 2; got an array \(\)"),
    ],
)
def test_arrays_that_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        saved(tmp_path / "a.npz", **arrays)


def test_arrays_of_objects_and_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}, 1], dtype=object), y=[0, 1])
    told = (
        r"numpy\.savez, numbers and text alone; got no such file, or one of Python objects: .* padded, beside `length"
    )
    with pytest.raises(DataError, match=told):  # not the advice to unpickle it
        read_numbers([tmp_path / "a.npz"])
    with pytest.raises(DataError, match=told):
        read(tmp_path / "b.npz", "no archive")
    np.save(tmp_path / "c.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"numpy\.savez.*got a single one, as of numpy\.save"):
        read(tmp_path / "c.npz", (tmp_path / "c.npy").read_bytes())
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).uniform(size=(9000, 9)), y=np.arange(9000))
    packed = lzma.compress((tmp_path / "d.npz").read_bytes())
    half = len(packed) // 2
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "d.npz.xz", packed[:half] + b"xxxx" + packed[half + 4 :])
    with pytest.raises(DataError, match=r"expected an array kind \(data\.label\)"):
        read(tmp_path / "d.npz", (tmp_path / "d.npz").read_bytes(), label="kind")
    with pytest.raises(DataError, match=r"expected one array \(data\.values\); got x, z"):
        read(tmp_path / "d.npz", (tmp_path / "d.npz").read_bytes(), values=("x", "z"))


TS = "# of an archive\n@problemName Two\n@timeStamps false\n@univariate false\n@classLabel true 1 2\n@data\n"


def test_the_archive_of_time_series(tmp_path: Path) -> None:
    found = read(tmp_path / "A_TRAIN.ts", TS + "1,2,3:4,?,6:1\n7:8:2\n")
    assert equal(steps(found), [[[1, 4], [2, NAN], [3, 6]], [[7, 8]]])
    assert found.examples.labels == ["1", "2"]
    assert found.examples.place(1).endswith("A_TRAIN.ts, line 8")
    slow = read(tmp_path / "c.ts", TS + "1,2:3,4:walk (slow)\n7:8:2\n")
    assert slow.examples.labels == ["walk (slow)", "2"]
    one = read(tmp_path / "b.ts.gz", gzip.compress(f"{TS}1,2,3:a\n3,4:b\n".encode()))
    assert steps(one) == [[[1], [2], [3]], [[3], [4]]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2:a\n", "expected a line @data"),
        (TS.replace("timeStamps false", "timeStamps true") + "1:a\n", "expected @timeStamps false"),
        (TS.replace("classLabel true 1 2", "classLabel false") + "1:2\n", "expected @classLabel true"),
        (TS + "(0,1),(1,2):a\n", "line 7: expected series without time stamps"),
        (TS + "1:2:a\n1:b\n", "line 8: expected 2 dimensions, separated by colons before the class; got 1"),
        (TS + "1,x:a\n", "line 7: expected a number, or . where it is missing; got 'x'"),
        (TS + "1:\n2:b\n", "line 7: the label is empty"),
    ],
)
def test_archives_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.ts", text)


def test_images_a_row_a_step(tmp_path: Path) -> None:
    pixels = bytes(range(12))
    images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 2)) + pixels
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (2).to_bytes(4, "big") + bytes([7, 3]))
    path = tmp_path / "t-images-idx3-ubyte"
    found = read(path, images)
    assert steps(found) == np.arange(12).reshape(2, 3, 2).tolist()
    assert found.examples.labels == ["7", "3"]
    by_pixel = read(path, images, step_size=1)
    assert (by_pixel.shape, by_pixel.sequences[1].ravel().tolist()) == ((1,), [*range(6, 12)])
    for kind in ("images-idx3", "labels-idx1"):
        dotted = tmp_path / f"u-{kind.replace('-idx', '.idx')}-ubyte"
        dotted.write_bytes((tmp_path / f"t-{kind}-ubyte").read_bytes())
    assert read_numbers([tmp_path / "u-images.idx3-ubyte"]).examples.labels == ["7", "3"]
    with pytest.raises(DataError, match="damaged or no IDX file"):
        read(path, images[:-1])
    (tmp_path / "t-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="is missing: expected an IDX file"):
        read(path, images)


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LONG)
    (tmp_path / "b.csv").write_text(LONG.replace(",y,", ",z,"))
    with pytest.raises(DataError, match=r"b\.csv: expected the columns of .*a\.csv: x, y; got x, z"):
        read_numbers([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_formats_by_name() -> None:
    names = ["a.npz", "b.TS.gz", "t-images-idx3-ubyte.gz", "c.csv", "shapes.train.npz.xz", "reviews-idx.tsv"]
    assert [format_of(Path(name)) for name in names] == ["npz", "ts", "idx", "long", "npz", "long"]


def test_bundled_files_are_what_their_scripts_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    bundled = Path(everstep.__file__).parent / "data" / "bundled"

    def held(name: str) -> bytes:
        return lzma.decompress((bundled / f"{name}.xz").read_bytes())

    gestures, balls, shapes = (importlib.import_module(f"make_{name}") for name in ("gestures", "balls", "shapes"))
    assert held("gestures.test.csv").decode().splitlines() == gestures.rows("test")
    assert held("balls.test.csv").decode().splitlines() == balls.rows("test")
    ours, theirs = (np.load(io.BytesIO(content)) for content in (held("shapes.test.npz"), shapes.clips("test")))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("x", "y"))
    learned = {clip.tobytes() for clip in np.load(io.BytesIO(held("shapes.train.npz")))["x"]}
    assert not any(clip.tobytes() in learned for clip in ours["x"])

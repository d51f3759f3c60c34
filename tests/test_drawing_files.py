"""Files of drawings: JSON lines, Quick, Draw!, arrays and SVG pictures, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everstep.data.readers.drawings import OBJECTS, drawing_of, drawing_text, read_drawings
from everstep.errors import DataError
from everstep.look.pen_pictures import paths_of, svg_bytes

V = [[0, 0, 0], [5, 20, 0], [5, -20, 1]]


def test_json_quick_draw_and_arrays_are_the_same_drawing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(V)}\n\n{json.dumps([[0, 0, 1]])}\n")
    drawn = [[[100, 105, 110], [50, 70, 50]]], [[[3], [4]]]
    lines = [json.dumps({"word": "v", "recognized": True, "drawing": one}) for one in drawn]
    (tmp_path / "a.ndjson").write_text("\n".join(lines))
    timed = [[100.0, 105, 110], [50, 70, 50], [0, 11, 23]]  # raw ones have times
    (tmp_path / "raw.ndjson").write_text(json.dumps({"drawing": [timed, [[], [], []]]}) + "\n" + lines[1])
    flat = np.array([*V, [0, 0, 1]], np.int16)
    np.savez_compressed(tmp_path / "a.npz", train_strokes=flat, train_lengths=[3, 1], valid_strokes=flat[:0],
                        valid_lengths=np.zeros(0, int))  # fmt: skip
    for name in ("a.jsonl", "a.ndjson", "raw.ndjson", "a.npz"):
        assert [one.tolist() for one in read_drawings(tmp_path / name, "train")] == [V, [[0, 0, 1]]], name
    assert list(read_drawings(tmp_path / "a.npz", "valid")) == []
    assert drawing_of(drawing_text(np.array(V)), "").tolist() == V
    assert [path.tolist() for path in paths_of(drawing_of("[[1,1,1],[0,2,0],[3,0,1]]", ""))] == [
        [[1, 1]],
        [[1, 3], [4, 3]],
    ]


def test_svg_pictures_are_drawings(tmp_path: Path) -> None:
    (tmp_path / "v.svg").write_bytes(svg_bytes(np.array([*V, [3, 3, 1]], np.float64)))
    (found,) = read_drawings(tmp_path / "v.svg", "train")
    assert found.tolist() == [*V, [3, 3, 0], [0, 0, 1]]  # a path of one point is a dot
    shapes = """<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><defs><path d="M9 9h9"/></defs>
    <g><path d="M10,20 c0,0 4,4 8,8 S 26,36 26,36 q2-4 4 0 t4,0"/><text transform="scale(2)">1</text></g>
    <polygon points="0,0 5,0 5,5"/><line x1="1" y2="7"/><path d="m1 1-2-3.5e0.5.5H7V8Z"/></svg>"""
    (tmp_path / "s.svg").write_text(shapes)
    curve, polygon, line, path = paths_of(next(iter(read_drawings(tmp_path / "s.svg", "train"))))
    curve = curve - curve[0]
    assert curve[[8, 16, 24, 32]].tolist() == [[8, 8], [16, 16], [20, 16], [24, 16]]
    assert curve[4].tolist() == [2.5, 2.5]  # de Casteljau at ½ of 0, 0, 4, 8
    assert curve[20].tolist() == [18, 14]
    assert curve[28].tolist() == [22, 18]  # the bend is mirrored
    assert (polygon - polygon[0]).tolist() == [[0, 0], [5, 0], [5, 5], [0, 0]]
    assert (line[1] - line[0]).tolist() == [-1, 7]
    assert (path - path[0]).tolist() == [[0, 0], [-2, -3.5], [-1.5, -3], [6, -3], [6, 7], [0, 0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no picture", "is no SVG picture that can be read"),
        ('<svg><path d="M0 0A1 1 0 0 0 2 2"/></svg>', "has the command 'A'; expected M L H V C S Q T Z"),
        ('<svg><path d="M0 0L1"/></svg>', "a path's L takes 2 numbers"),
        ('<svg><path d="1 2"/></svg>', "of no letter"),
        ('<svg><path d="M0 0 L1 ; 2"/></svg>', "';' stands among the numbers"),
        ('<svg><path d="M0 0z 3"/></svg>', "takes no numbers"),
        ('<svg><polyline points="1 2 3"/></svg>', "is no SVG picture that can be read"),
        ('<svg><g transform="scale(2)"><path d="M0 0h1"/></g></svg>', "a path has a transformation"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>', "without entities of its own"),
        ('<svg><path d="M0 0L1e999 0"/></svg>', "expected finite numbers"),
        ('<svg><line x1="nan"/></svg>', "expected finite numbers"),
        ("<svg>" + "<g>" * 20_000 + "</g>" * 20_000 + "</svg>", "can be read"),
        ("<svg>" + " " * (4 << 20), "at most 4,194,304 bytes"),
    ],
)
def test_pictures_that_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.svg").write_text(content)
    with pytest.raises(DataError, match=said):
        list(read_drawings(tmp_path / "x.svg", "train"))


class Burglar:
    """What would act if it were unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("burgled"),))


def test_pickled_files_of_sketch_rnn_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("bad.npz", train=np.array([Burglar()], object))
    with pytest.raises(DataError, match="pickled objects, which would run as code; convert one that you trust"):
        list(read_drawings(Path("bad.npz"), "train"))
    assert not Path("burgled").exists()
    given = {part: np.array([np.array(V, np.int16), np.array(V[:2], np.int16)], object) for part in ("train", "test")}
    np.savez("cat.npz", **given)
    code = OBJECTS.partition("trust: ")[2].replace("FILE", "'cat.npz'").replace("NEW", "'plain.npz'")
    exec(code, {"np": np})  # the advice works
    for part in given:
        assert [one.tolist() for one in read_drawings(Path("plain.npz"), part)] == [V, V[:2]]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"other": [1]}, "expected the arrays train_strokes and train_lengths; it has other"),
        ({"train_strokes": [[1, 2]], "train_lengths": [1]}, r"expected \(N, 3\) finite numbers"),
        ({"train_strokes": [[1, 2, 7]], "train_lengths": [1]}, "lifted, 0 or 1"),
        ({"train_strokes": [[1, np.nan, 0]], "train_lengths": [1]}, "finite"),
        ({"train_strokes": [[1, 2, 0]], "train_lengths": [2]}, "expected the lengths of drawings, 1 points in all"),
        ({"train_strokes": [[1, 2, 0]], "train_lengths": [2, -1]}, "lengths"),
        ({"train_strokes": [[1, 2, 0]], "train_lengths": [1.0]}, "lengths"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "x.npz", **{name: np.array(value) for name, value in arrays.items()})
    with pytest.raises(DataError, match=said):
        list(read_drawings(tmp_path / "x.npz", "train"))

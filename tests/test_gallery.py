"""The README of a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from everstep.look.gallery import MARK, write_gallery


def picture(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    return folder / name


def test_every_picture_stands_with_its_sentence(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    drawn = [(picture(out, "a.png"), "r = −0.80 of W_hi, ∂s_t."), (picture(out, "b.html"), "Point at it.")]
    path = write_gallery(out, "Pictures of one", drawn)
    assert path == out / "README.md"
    assert path.read_text(encoding="utf-8") == (
        f"# Pictures of one\n\n{MARK}\n\n"
        "## a.png\n\n![a.png](a.png)\n\nr = −0.80 of W\\_hi, ∂s\\_t.\n\n"
        "## b.html\n\n[b.html](b.html)\n\nPoint at it.\n"
    )


def test_what_is_drawn_again_is_written_anew_and_the_rest_stays(tmp_path: Path) -> None:
    a, b, c = (picture(tmp_path, name) for name in ("a.png", "b.png", "c.png"))
    write_gallery(tmp_path, "One", [(a, "old a"), (b, "old b"), (c, "old c")])
    c.unlink()
    text = write_gallery(tmp_path, "Two", [(a, "new a")]).read_text(encoding="utf-8")
    assert text.startswith("# Two\n")
    assert "new a" in text
    assert "old b" in text
    assert "old a" not in text
    assert "c.png" not in text
    again = write_gallery(tmp_path, "Two", [(a, "new a")]).read_text(encoding="utf-8")
    assert again == text


def test_a_readme_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n", encoding="utf-8")
    path = write_gallery(tmp_path, "One", [(picture(tmp_path, "a.png"), "What to see.")])
    assert path == tmp_path / "PICTURES.md"
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# Mine\n"
    assert write_gallery(tmp_path, "One", [(tmp_path / "a.png", "What to see.")]) == path

"""The README of a folder of pictures, with a caption for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

MARK = "<!-- pictures by everstep: each section is written anew with its picture -->"
_SHOWN = (".png", ".svg")


def write_gallery(folder: Path, title: str, drawn: Sequence[tuple[Path, str]]) -> Path:
    """Write `README.md`, or `PICTURES.md` if the folder has another README; returns its path.

    Sections of other pictures are kept as long as their files exist.

    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.png").write_bytes(b"")
    >>> print(write_gallery(folder, "One", [(folder / "a.png", "What to see.")]).read_text().splitlines()[4])
    ## a.png

    Args:
        folder: the folder of the pictures.
        title: the title of the page.
        drawn: the path of each picture, in the folder, and its caption.
    """
    path = folder / "README.md"
    if path.exists() and not _ours(path):
        path = folder / "PICTURES.md"
    sections = _sections(path) if _ours(path) else {}
    new = {picture.name: _section(picture.name, words) for picture, words in drawn}
    kept = {name: body for name, body in sections.items() if name not in new and (folder / name).is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# {title}\n\n{MARK}\n\n" + "\n".join([*new.values(), *kept.values()])
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _ours(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")


def _section(name: str, words: str) -> str:
    shown = f"![{name}]({name})" if name.endswith(_SHOWN) else f"[{name}]({name})"
    return f"## {name}\n\n{shown}\n\n{_plain(words)}\n"


def _plain(words: str) -> str:
    """The text with Markdown characters escaped."""
    return re.sub(r"([\\`*_<>\[\]|#$])", r"\\\1", words)


def _sections(path: Path) -> dict[str, str]:
    _, *parts = path.read_text(encoding="utf-8").split("\n## ")
    return {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}

"""Generated texts as files: as text, or as what the job renders, such as MIDI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from everstep.cli.common import log
from everstep.errors import RunError

OUT = typer.Option(
    None,
    metavar="FILE",
    help="Also write it into a file: text, .mid of chords, .svg of drawings (with --count FILE-1, FILE-2, …).",
)


class GeneratedFiles:
    """Keeps what is generated, and writes it into a file for each text.

    Args:
        task: the job.
        out: the file; if there are several texts, their numbers follow its stem.
        count: number of texts.

    Raises:
        typer.BadParameter: the job does not write such files, or the folder does not exist.
    """

    def __init__(self, task: Any, out: Path, count: int):
        from everstep.runs.capabilities import Renders  # imports torch

        known = ("", ".txt", *(task.renders if isinstance(task, Renders) else ()))
        if out.suffix.lower() not in known:
            wanted = ", ".join(name for name in known if name)
            raise typer.BadParameter(f"expected a name that ends in {wanted}; got {out}.", param_hint="--out")
        if not out.parent.is_dir() or out.is_dir():
            raise typer.BadParameter(f"expected a file in a folder that exists; got {out}.", param_hint="--out")
        self._task, self._texts = task, [""] * count
        names = [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
        self._paths = names

    def kept(self, pieces: Iterator[list[str]]) -> Iterator[list[str]]:
        """The same pieces, which are kept."""
        for found in pieces:
            self._texts = [text + piece for text, piece in zip(self._texts, found, strict=True)]
            yield found

    def write(self) -> None:
        """Write the files.

        Raises:
            RunError: a file cannot be written.
        """
        for path, text in zip(self._paths, self._texts, strict=True):
            suffix = path.suffix.lower()
            plain = suffix in ("", ".txt")
            content = f"{text}\n".encode() if plain else self._task.rendered(text, suffix)
            try:
                path.write_bytes(content)
            except OSError as error:
                raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
            log(f"{path}: written" + ("" if text.strip() else ", but nothing is in it; ask for more with --length"))

"""Manifests: tables that name recordings and what is said in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from everstep.data.readers.audio import INLINE
from everstep.data.readers.labelled_formats import rows
from everstep.data.readers.labelled_rows import Columns, Row
from everstep.errors import DataError, counted

ManifestFormat = Literal["auto", "tsv", "csv", "jsonl"]
SHOWN = 3


class Named(NamedTuple):
    """A recording that a manifest names.

    Attributes:
        audio: its path, or the recording itself (`data:audio/wav;base64,…`).
        text: what is said, with single spaces.
        where: file and line of the manifest.
    """

    audio: str
    text: str
    where: str

    @property
    def inline(self) -> bool:
        """Whether the manifest holds the recording itself."""
        return self.audio.startswith(INLINE)

    @property
    def shown(self) -> str:
        """The recording, for messages."""
        return f"{self.where}: the recording" if self.inline else f"{self.where}: {self.audio}"


def read_manifest(path: Path, columns: Columns, encoding: str, format: ManifestFormat, folder: str) -> list[Named]:
    """The recordings that a table or a file of JSON lines names, in its order.

    Args:
        path: the manifest.
        columns: of the paths and of the texts.
        encoding, format: of the manifest; auto: by its name, else by its first line.
        folder: where paths that are not absolute begin, seen from the folder of the manifest.

    Raises:
        DataError: it cannot be read, names none, or names recordings that are not there.
    """
    found = []
    for row in rows(path, columns, encoding, format):
        if isinstance(row, Row):
            where = f"{path}, line {row.line}"
            audio = row.text.strip()
            if not audio:
                raise DataError(f"{where}: expected the path of a recording (data.{columns.keys[0]}); it is empty")
            if not audio.startswith(INLINE):
                audio = str(path.parent / folder / audio)
            found.append(Named(audio, " ".join(row.label.split()), where))
    if not found:
        raise DataError(f"{path}: expected recordings, one a line below the header; got none")
    missing = [one for one in found if not one.inline and not Path(one.audio).is_file()]
    if missing:
        told = "; ".join(one.shown for one in missing[:SHOWN]) + ("; …" if len(missing) > SHOWN else "")
        raise DataError(
            f"{path}: {len(missing):,} of {counted(len(found), 'recording')} are not there: {told}. Paths are relative "
            "to the folder of the manifest, or to data.folder in it"
        )
    return found


def repeated(found: list[Named]) -> Iterator[str]:
    """A note on recordings that are named more than once, if there are any."""
    twice = [audio for audio, times in Counter(one.audio for one in found).items() if times > 1]
    if twice:
        yield f"{counted(len(twice), 'recording')} named more than once, such as {twice[0][:80]}"

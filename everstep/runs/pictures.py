"""The pictures of a run that `look` and `demo` draw, and the passages they use."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from everstep.errors import DataError

if TYPE_CHECKING:
    from everstep.look.passage import Passage
    from everstep.runs.run import Run

Drawer: TypeAlias = Callable[[Any, Path, str | None], list[tuple[Path, str]]]
"""A function of a run, a folder and the user's text (or None) to pictures, each with a caption."""

PASSAGE = 600
"""Characters of a passage that is shown."""


def draw(run: Run, out: Path, text: Path | None = None) -> Iterator[tuple[Path, str]]:
    """Draw all pictures of a run; yields the path and the caption of each.

    The captions are also written to the folder's README as the drawing proceeds.
    """
    from everstep.look.gallery import write_gallery

    own = None if text is None else own_text(run, text)
    drawn: list[tuple[Path, str]] = []
    for drawer in drawers():
        for picture in drawer(run, out, own):
            drawn.append(picture)
            yield picture
        write_gallery(out, f"Pictures of {run.path.resolve().name}", drawn)


def pictures_of(run: Path) -> Path:
    """The folder of a run's pictures, after removing links in it, through which a drawing would be written.

    Raises:
        RunError: the folder is a link itself.
    """
    from everstep.storage import files

    folder = run / "pictures"
    files.refuse_link(folder)
    for path in folder.glob("*"):
        if path.is_symlink():
            files.remove(path)
    return folder


def drawers() -> list[Drawer]:
    """The drawers of `look` in order; each draws what the passages of the job allow."""
    from everstep.look import over_passages

    names = [f"{over_passages.__name__}.{module.name}" for module in pkgutil.iter_modules(over_passages.__path__)]
    files = sorted(map(import_module, names), key=lambda picture: int(picture.CHARACTERS))
    return [draw_learning, draw_beside, draw_own, *(partial(draw_over, picture) for picture in files)]


def own_text(run: Run, path: Path) -> str:
    """The beginning of the user's text, decoded with the encoding of the training data; of pieces, the first one.

    Raises:
        DataError: the file cannot be read, has another encoding, or holds no piece.
    """
    from everstep.data.text.decoding import NotText
    from everstep.data.text.text_files import read_blocks
    from everstep.runs.capabilities import HoldsLines

    if isinstance(run.task, HoldsLines):
        if not (lines := run.task.file_lines(path)):
            raise DataError(f"look: {path}: there is nothing in it")
        return lines[0]
    encoding = recipe_encoding(run)
    try:
        return next(iter(read_blocks([path], encoding)), "")
    except NotText as error:
        raise DataError(f"{error} Expected {encoding}, as the training text was: convert it (iconv).") from None


def recipe_encoding(run: Run) -> str:
    """The encoding of a run's training data."""
    return str(getattr(getattr(run.recipe, "data", None), "encoding", "utf-8"))


def passage(run: Run, text: str | None, characters: int = PASSAGE) -> Passage | None:
    """A passage of about `characters` characters as the model reads it; None if the job has no passages.

    Raises:
        DataError: the passage is blank.
    """
    from everstep.runs.capabilities import Draws

    if not isinstance(run.task, Draws):
        return None
    try:
        return run.passage(text, characters)
    except DataError as error:
        raise DataError(f"look: {error}") from None


def draw_learning(run: Run, out: Path, text: str | None = None) -> list[tuple[Path, str]]:
    """The learning curves of a run, but of an average, which has none; and its surprise over a passage."""
    from everstep.look.curves import curve_words, learning_curves
    from everstep.look.glyphs import note
    from everstep.look.surprise import surprise_html, surprise_text, surprise_words
    from everstep.runs.card import read_environment

    found = passage(run, text)
    unit = run.task.unit if found is None or found.surprise is None else found.unit
    drawn = []
    if "average_of" not in read_environment(run.path):
        select = run.recipe.train.select
        curves = learning_curves(run.path / "metrics.jsonl", out / "curves.png", unit, run.task.loss_unit, select)
        drawn = [(out / "curves.png", curve_words(curves, unit, run.task.loss_unit))]
    if found is None or found.surprise is None:
        return drawn
    pairs = found.pairs
    surprise_text(pairs, out / "surprise.png", token=found.shown)
    surprise_html(pairs, out / "surprise.html", found.shown)
    boxes = note([piece for piece, _ in pairs], "surprise.html")
    return [
        *drawn,
        (out / "surprise.png", surprise_words(pairs, found.shown) + boxes),
        (out / "surprise.html", "The same in a browser; point at it to see each probability."),
    ]


def draw_beside(run: Run, out: Path, text: str | None = None) -> list[tuple[Path, str]]:
    """The run beside its baselines, on the test split if training measured them there."""
    from everstep.look.rivals import draw_rivals
    from everstep.storage.reading import parse_json, read_small

    path = run.path / "scores.json"
    scores = parse_json(read_small(path, 1 << 28)) if path.exists() else {}
    beside = [split for split, measures in scores.items() if measures.get("rivals")]
    if not beside:
        return []
    split = "test" if "test" in beside else beside[-1]
    measures = scores[split]
    measure = next(name for name in run.task.shown if name in measures)
    known = {"this run": measures[measure], **{rival["name"]: rival[measure] for rival in measures["rivals"]}}
    name, highest = f"{measure.replace('_', ' ')} on {split}", measure in run.task.scores
    return [(out / "rivals.png", draw_rivals(known, name, out / "rivals.png", highest))]


def draw_over(picture: Any, run: Run, out: Path, text: str | None = None) -> list[tuple[Path, str]]:
    """The pictures of a file of `look/over_passages/`."""
    from everstep.runs.progress_bar import progress_bar

    found = passage(run, text, picture.CHARACTERS)
    return [] if found is None else picture.draw(found, out, run.model, progress_bar)


def draw_own(run: Run, out: Path, text: str | None = None) -> list[tuple[Path, str]]:
    """The pictures that the job itself draws; with the user's text, those that need no missing data."""
    from everstep.runs.capabilities import Pictures
    from everstep.runs.run import warn

    drawn: list[tuple[Path, str]] = []
    if not isinstance(run.task, Pictures):
        return drawn
    try:
        drawn.extend(run.task.pictures(run.model, out, text))
    except DataError as error:
        if text is None or not run.data_gone():
            raise
        warn(f"note: {error}; what is drawn of that data is left out")
    return drawn


def demo_picture(run: Run) -> Path:
    """Learning curve and surprise side by side in one PNG, sized for a README."""
    from everstep.look.curves import curve_words, learning_curves
    from everstep.look.gallery import write_gallery
    from everstep.look.glyphs import note
    from everstep.look.style import canvas, save
    from everstep.look.surprise import surprise_text, surprise_words

    found = run.passage(None, 420)
    figure = canvas()
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    curves = learning_curves(run.path / "metrics.jsonl", left, found.unit, select=run.recipe.train.select)
    left.set_title("learning", fontsize=16, loc="left")
    right.set_title("surprise at text it never saw", fontsize=16, loc="left")
    pairs = found.pairs
    surprise_text(pairs, right, columns=56, token=found.shown)
    path: Path = pictures_of(run.path) / "demo.png"
    save(figure, path)
    boxes = note([piece for piece, _ in pairs], "surprise.html of `everstep look`")
    words = f"Left: {curve_words(curves, found.unit)} Right: {surprise_words(pairs, found.shown)}{boxes}"
    write_gallery(path.parent, f"Pictures of {run.path.resolve().name}", [(path, words)])
    return path

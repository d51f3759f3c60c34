"""The pictures of a run: what `look` and `demo` draw, and which passage they draw it over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from everstep.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from everstep.tasks.run import Run

Drawer: TypeAlias = Callable[[Any, Path, Path | None], list[tuple[Path, str]]]
"""From a run, a folder and a text of the user's (or None) to pictures, each with a sentence that says what to see."""

PASSAGE = 600  # characters
NAMES = {"chars": "character", "bytes": "byte", "words": "word", "bpe": "sub-word", "unigram": "sub-word"}


def draw(run: Run, out: Path, text: Path | None = None) -> Iterator[tuple[Path, str]]:
    """All pictures of a run, as they are drawn; each one's path with a sentence that says what to see.

    The sentences are also in the folder's README, as far as it has come.
    """
    from everstep.look.gallery import write_gallery

    drawn: list[tuple[Path, str]] = []
    for drawer in drawers():
        for picture in drawer(run, out, text):
            drawn.append(picture)
            yield picture
        write_gallery(out, f"Pictures of {run.path.resolve().name}", drawn)


def pictures_of(run: Path) -> Path:
    """The folder of a run's pictures, without links, which a drawing would be written through.

    Raises:
        RunError: it is a link itself.
    """
    from everstep.learn import files

    folder = run / "pictures"
    files.refuse_link(folder)
    for path in folder.glob("*"):
        if path.is_symlink():
            files.remove(path)
    return folder


def drawers() -> list[Drawer]:
    """What `look` draws, in this order."""
    from everstep.cli.activity import draw_gates, draw_units
    from everstep.cli.landscape import draw_landscape
    from everstep.cli.remembering import draw_memory

    return [draw_learning, draw_memory, draw_gates, draw_units, draw_landscape]


def draw_learning(run: Run, out: Path, text: Path | None = None) -> list[tuple[Path, str]]:
    """Curves and surprise of a run."""
    from everstep.look.curves import curve_words, learning_curves
    from everstep.look.glyphs import note
    from everstep.look.surprise import surprise_html, surprise_text, surprise_words

    token = NAMES[run.config.data.unit]
    pairs = surprise(run, text)
    curves = learning_curves(run.path / "metrics.jsonl", out / "curves.png", token)
    shown = shown_as(token)
    surprise_text(pairs, out / "surprise.png", token=shown)
    surprise_html(pairs, out / "surprise.html", shown)
    boxes = note([piece for piece, _ in pairs], "surprise.html")
    return [
        (out / "curves.png", curve_words(curves, token)),
        (out / "surprise.png", surprise_words(pairs, shown) + boxes),
        (out / "surprise.html", "The same in a browser; point at it to see each probability."),
    ]


def shown_as(token: str) -> str:
    """What one coloured piece of a passage is: bytes are shown as the characters they make."""
    return "character" if token == "byte" else token


def demo_picture(run: Run) -> Path:
    """Learning curve and surprise side by side, in one PNG at the size of a README."""
    from everstep.look.curves import curve_words, learning_curves
    from everstep.look.gallery import write_gallery
    from everstep.look.glyphs import note
    from everstep.look.style import canvas, save
    from everstep.look.surprise import surprise_text, surprise_words

    token = NAMES[run.config.data.unit]
    figure = canvas()
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    curves = learning_curves(run.path / "metrics.jsonl", left, token)
    left.set_title("learning", fontsize=16, loc="left")
    right.set_title("surprise at text it never saw", fontsize=16, loc="left")
    pairs, shown = surprise(run, None, 420), shown_as(token)
    surprise_text(pairs, right, columns=56, token=shown)
    path: Path = pictures_of(run.path) / "demo.png"
    save(figure, path)
    boxes = note([piece for piece, _ in pairs], "surprise.html of `everstep look`")
    words = f"Left: {curve_words(curves, token)} Right: {surprise_words(pairs, shown)}{boxes}"
    write_gallery(path.parent, f"Pictures of {run.path.resolve().name}", [(path, words)])
    return path


def surprise(run: Run, text: Path | None, characters: int = PASSAGE) -> list[tuple[str, float]]:
    """The tokens of a passage with their bits, written so that they can be set one after another."""
    pairs = run.surprise(passage(run, text, characters))
    if run.config.data.unit == "words":
        return [(token if token in ("\n", "<eos>") else f"{token.strip()} ", bits) for token, bits in pairs]
    return pairs


def passage(run: Run, text: Path | None, characters: int = PASSAGE) -> str:
    """Whole lines, about that many characters: the head of `text`, else of the held-out text.

    Raises:
        DataError: the run was trained on no text, or the passage is blank.
    """
    from everstep.data.decoding import NotText
    from everstep.data.text import read_blocks

    if not hasattr(run, "texts"):
        raise DataError(f"look: {run.path} was trained on no text; pictures over a text need a language model")
    splits, encoding = run.texts.spans, run.config.data.encoding
    blocks = read_blocks([text], encoding) if text else run.texts.read("valid" if "valid" in splits else "train")
    try:
        head = next(iter(blocks)).lstrip("\n")[:characters]
    except NotText as error:
        raise DataError(f"{error} Expected {encoding}, as the training text was: convert it (iconv).") from None
    found = head[: head.rfind("\n") + 1] or head
    if not found.strip():
        raise DataError(f"look: {text or run.path}: the passage is empty; give a text with some lines: --text FILE")
    return found


def inputs_and_targets(run: Run, text: Path | None, characters: int, tokens: int) -> tuple[Tensor, Tensor]:
    """What a model reads of a passage of at most `tokens` tokens, and what it should say: ids (time,) of each.

    Raises:
        DataError: the passage has fewer than two tokens, or as `passage`.
    """
    import torch

    ids = run.tokenizer.encode(passage(run, text, characters), line_end=False)[:tokens].tolist()
    begin = run.tokenizer.begin_id
    read = ids if begin is None else [begin, *ids]
    if len(ids) < 2 or len(read) < 3:
        raise DataError(
            f"look: the text has {len(ids)} token; gradients need two or more to travel. Give a longer --text."
        )
    row = torch.tensor(read)
    return row[:-1], row[1:]


def target_loss(model: Any) -> Any:
    """−log p of each target in nats: a function of outputs (batch, time, features) and targets (batch, time)."""
    return lambda ys, targets: -model.head.predict(ys).gather(-1, targets[..., None])[..., 0]

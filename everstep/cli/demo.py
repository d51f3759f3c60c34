"""`everstep demo`: trains a model in a minute, and shows its text, score and picture."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everstep.cli.common import load_run, log, me
from everstep.cli.train_verb import finish, go_on, start

if TYPE_CHECKING:
    from everstep.runs.run import Run

RECIPE = "shakespeare-minute"


def demo(
    out: Path = typer.Option(Path("runs/demo"), "--out", "-o", metavar="RUN", help="Folder to create."),
) -> None:
    """Train on the bundled text for a minute, then sample, score and draw.

    \b
      everstep demo
      everstep demo --out runs/another

    A character model of Shakespeare's plays. A second call shows the model, or resumes an interrupted training.
    """
    if (out / "config.yaml").is_file():
        if (out / "model.safetensors").is_file():  # written at the end of training
            log(f"{out} is already trained; this is what is there (to train anew: delete it, or give another --out).")
            run = load_run(out)
        else:
            log(f"{out} was stopped before its end; going on with it.")
            run = go_on(out)
    else:
        log("Training a character model of Shakespeare's plays; this takes a minute.")
        from everstep.runs.recipe_files import load_task

        run = start(load_task(RECIPE), out)
    show(run)


def show(run: Run) -> None:
    """Show a sample, the score beside simple baselines, the picture, and next commands."""
    sample = "".join(piece for (piece,) in run.stream(run.decode.replace(length=500), seed=1))
    print(f"─── 500 characters from the model ───\n{sample}")
    print("\n─── bits per character on the last tenth of the text, which it was not trained on (lower is better) ───")
    print(f"  {float(run.evaluate('valid')['bits_per_char']):5.2f}  this model")
    for bits, name in rivals(run):
        print(f"  {bits:5.2f}  {name}")
    from everstep.runs.pictures import demo_picture

    print(f"\n─── picture ───\n  {demo_picture(run)}")
    finish(run)
    beside = run.path.parent
    print(f"  {me()} train shakespeare --out {beside / 'shakespeare'}    (half an hour, a better model)")
    print(f"  {me()} train text-words data.train=my.txt --out {beside / 'mine'}    (your own text)")


def rivals(run: Any) -> list[tuple[float, str]]:
    """Bits per character of simple baselines, trained and evaluated on the same texts."""
    train, valid = ("".join(run.task.texts.read(split)) for split in ("train", "valid"))
    known = len(set(train))
    return [
        (counted_bits(train, valid, 2, known), "counts of three characters in a row"),
        (counted_bits(train, valid, 1, known), "counts of two characters in a row"),
        (counted_bits(train, valid, 0, known), "counts of single characters"),
        (math.log2(known), f"chance, {known} characters alike"),
    ]


def counted_bits(train: str, valid: str, order: int, known: int) -> float:
    """Bits per character of p(c | context) = (n(context, c) + 1) / (n(context) + known), with `order` characters."""

    def count(text: str) -> Counter[str]:
        return Counter(text[i : i + order + 1] for i in range(len(text) - order))

    whole, context = count(train), Counter[str]()
    for gram, times in whole.items():
        context[gram[:-1]] += times
    total = 0.0
    for gram, times in count(valid).items():
        total -= times * math.log2((whole[gram] + 1) / (context[gram[:-1]] + known))
    return total / (len(valid) - order)

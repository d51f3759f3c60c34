"""`everstep lab pictures`: the field's famous pictures, drawn of networks trained on the spot."""

from __future__ import annotations

from pathlib import Path

import typer

from everstep.cli.common import log, prepare


def pictures(
    out: Path = typer.Option(Path("pictures"), "--out", "-o", metavar="DIR", help="Folder of the pictures."),
) -> None:
    """Draw gradients that vanish, persist and explode.

    \b
      everstep lab pictures --out pictures

    Trains a tanh network and an LSTM for some seconds to repeat the first symbol of a sequence at cues. The pictures
    are reproducible.

    \b
      unfolded.png              sensitivity of every node of both networks to the first symbol
      gradient-flow.png         gradient norm against the number of steps back
      cliff.png                 a loss surface with a cliff, descended with and without clipping
      lstm.svg, lstm-steps.svg  the graph of an LSTM, folded and unfolded
      README.md                 all pictures with captions
    """
    prepare()
    from everstep.cells import LSTM
    from everstep.lab import remember
    from everstep.look.cell_graph import draw_graph
    from everstep.look.cliff import cliff_picture
    from everstep.look.gallery import write_gallery

    out.mkdir(parents=True, exist_ok=True)  # before the training, which a failure here would waste
    log("Training a tanh network and an LSTM; this takes some seconds.")
    drawn = remember.pictures(out)
    drawn.append((out / "cliff.png", cliff_picture(out / "cliff.png")))
    draw_graph(LSTM(64, 128), out / "lstm.svg")
    drawn.append((out / "lstm.svg", "One step of an LSTM: products blue, gates orange; red runs to the next step."))
    draw_graph(LSTM(64, 128), out / "lstm-steps.svg", unfolded=4)
    drawn.append((out / "lstm-steps.svg", "The same unfolded: one box a step, and what is handed on between them."))
    write_gallery(out, "Gradients that vanish, last and explode", drawn)
    for path, what_to_see in drawn:
        print(f"{path}\n    {what_to_see}")

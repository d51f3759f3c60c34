"""The verb `average`."""

from __future__ import annotations

from pathlib import Path

import typer

from everstep.cli.common import check_run, log, prepare
from everstep.cli.run_verbs import RUN, TRUST


def average(
    run: Path = RUN,
    last: int = typer.Option(5, "--last", metavar="N", help="The number of newest checkpoints to average (≥ 2)."),
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="NEW", help="Folder to create; never overwritten.", show_default="RUN-average-N"
    ),
    trust_code: bool = TRUST,
) -> None:
    """Average the weights of the last checkpoints of a run into a run of its own.

    \b
      everstep train translate-own train.keep_last=5 --out runs/mine
      everstep average runs/mine --last 5
      everstep average runs/mine --last 3 --out runs/mean

    The validation before and after is said, and RUN stays as it is. train.keep_last is the number of newest
    checkpoints that a training keeps, and train.checkpoint_every the steps between them.
    """
    if last < 2:
        raise typer.BadParameter(f"expected a whole number ≥ 2; got {last}.", param_hint="--last")
    check_run(run)
    prepare()
    from everstep.runs.weight_averages import average as averaged

    found = averaged(run, last, out, trust_code=trust_code, log=log)
    print(f"\nThe average is in {found.path}, a run like any other.")

"""`everstep tune`: the values of a recipe's keys that validate best."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everstep.cli.common import log, me, prepare
from everstep.errors import RunError

if TYPE_CHECKING:
    from everstep.lab.tuning import TuningPlan

SHOWN = 10


def tune(
    recipe: str = typer.Argument(..., metavar="RECIPE", help="A shipped name (text-words) or a YAML file."),
    keys: list[str] | None = typer.Argument(
        None, metavar="KEY=…", help="Keys to tune, and changes of the recipe's other keys."
    ),
    trials: int = typer.Option(20, min=1, help="Trials in all, with those of earlier calls."),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        metavar="FOLDER",
        help="Folder of the study; an existing one is resumed.",
        show_default="runs/tune-RECIPE",
    ),
    workers: int = typer.Option(1, min=1, help="Trials trained at once, each in a process of its own."),
    unpruned: int = typer.Option(5, min=1, help="Trials trained to their end before any is stopped."),
    json: bool = typer.Option(False, "--json", help="Print the trials as JSON."),
    trust_code: bool = typer.Option(False, "--trust-code", help="Execute the Python files stored in trials."),
) -> None:
    """Try values of a recipe's keys, and find those that validate best.

    \b
      everstep tune text-words data.train=my.txt train.max_epochs=3
      everstep tune classify-minute train.learning_rate=log:1e-4..1e-2 model.hidden_size=32..256 model.cell=LSTM,GRU
      everstep tune mine.yaml model.dropout=0..0.6 --trials 50 --workers 4 --out runs/study
      everstep train runs/study/best.yaml train.max_epochs=30 --out runs/best       the best one, for longer

    \b
      KEY=LOW..HIGH        numbers of a range; whole ones if the key takes those alone
      KEY=log:LOW..HIGH    the same on a logarithmic scale
      KEY=a,b,c            one of some values
      KEY=VALUE            the same for all trials

    Without a key to tune: the learning rate, the size of the state and the dropouts that the recipe has.

    A trial is a run like any other, in FOLDER/trial-0003, with a seed of its own, unless the seed decides what is held
    out. Values come from Optuna (TPE). A trial that validates worse than the median of those trained before it, at the
    same number of validations, is stopped. Everything can be stopped or killed at any time; the same command goes on,
    each trial from its last checkpoint. The same command elsewhere, on a machine that sees the FOLDER, helps. The best
    of many trials looks better on the validation split than it is: judge it by the test split alone.

    \b
      FOLDER/trial-0000 …           the trials
      FOLDER/best.yaml              the recipe of the best one
      FOLDER/journal.jsonl          the study, as Optuna's journal
      FOLDER/pictures/trials.png    all trials in their turn, and by key
    """
    prepare()
    from everstep.lab import tuning

    folder = out or Path("runs") / f"tune-{Path(recipe).stem}"
    plan, found = tuning.tune(
        recipe,
        folder,
        log,
        keys=keys or [],
        trials=trials,
        workers=workers,
        unpruned=unpruned,
        trust_code=trust_code,
        begin=prepare,
    )
    ranks = tuning.ranked(plan, found)
    if json:
        from everstep.storage.reading import json_text

        best = ranks[0]["trial"] if ranks else None
        print(json_text({"measure": plan.measure, "highest": plan.highest, "best": best, "trials": found}))
    else:
        print("\n".join(table(plan, found, ranks)))
    if ranks:
        _finish(plan, found, ranks[0], print if not json else log)
    elif all(record["outcome"] != "running" for record in found):
        raise RunError(f"no trial of {folder} was trained to its end; give other ranges, and another --out")


def table(plan: TuningPlan, found: list[dict[str, Any]], ranks: list[dict[str, Any]]) -> list[str]:
    """The lines of the best trials, best first, and how many ended otherwise."""
    from everstep.lab.tuning import told

    lines = [told(plan, record) for record in ranks[:SHOWN]]
    lines += [f"… and {len(ranks) - SHOWN} more trained"] if len(ranks) > SHOWN else []
    for outcome in ("pruned", "diverged", "refused", "running"):
        some = [str(record["trial"]) for record in found if record["outcome"] == outcome]
        lines += [f"{len(some)} {outcome}: {', '.join(some)}"] if some else []
    return lines


def _finish(plan: TuningPlan, found: list[dict[str, Any]], best: dict[str, Any], say: Any) -> None:
    """Draw the trials, and say how to use the best one."""
    from everstep.lab.study_journal import importances
    from everstep.lab.tuned_keys import Range
    from everstep.lab.tuning import BEST_RECIPE
    from everstep.look.gallery import write_gallery
    from everstep.look.tuned_trials import draw_trials
    from everstep.runs.folder import CODE, RECIPE

    picture = plan.out / "pictures" / "trials.png"
    logarithmic = [one.key for one in plan.keys if isinstance(one, Range) and one.log]
    shares = importances(plan.journal(), sum(record["outcome"] == "trained" for record in found))
    words = draw_trials(found, plan.measure, plan.highest, picture, logarithmic, shares)
    write_gallery(picture.parent, f"Trials of {plan.out.resolve().name}", [(picture, words)])
    say(f"\n{picture}\n    {words}")
    own = (plan.out / best["run"] / CODE).is_dir()
    named = best["run"], f"{best['run']}/{RECIPE}" if own else BEST_RECIPE, "best"  # beside its code
    run, recipe, longer = (shlex.quote(str(plan.out / name)) for name in named)
    trust = " --trust-code" if own else ""
    say(f"\nThe best run is {run}:\n  {me()} eval {run}{trust}")
    say(f"Its recipe, for longer:\n  {me()} train {recipe} train.max_steps=… --out {longer}{trust}")

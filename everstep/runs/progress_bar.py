"""A progress bar on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal; yields a function of the amounts (done, total).

    It shows the title, the share that is done and the time left; with a unit, such as "n-grams", also the amount done.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False)
    amount = (TextColumn("{task.completed:,} {task.fields[unit]}"),) if unit else ()
    columns = (name, BarColumn(), TaskProgressColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, unit=unit)
        yield lambda done, total: bar.update(task, completed=done, total=total)

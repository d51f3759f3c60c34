"""Studies of Optuna in a folder: a journal that survives kills, and trials that one process at a time works on.

Optuna never ends the trial of a process that was killed: it stays "running". Here a process that works on a trial holds
a lock, which the system releases with the process. So a running trial that nobody holds was left behind, and the next
process that looks for work goes on with it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from everstep.errors import RunError
from everstep.lab.tuned_keys import Choices, Tuned
from everstep.storage import files
from everstep.storage.run_lock import InUse, RunLock

JOURNAL = "journal.jsonl"
_NAME, _PICKING, _WRITING, _CLAIMS = "everstep", ".picking", ".writing", ".claims"


def trial_name(number: int) -> str:
    """The folder of a trial below that of its study."""
    return f"trial-{number:04d}"


class StudyJournal:
    """The study in a folder; further ones in other processes, or on other machines that see the folder, share it.

    Args:
        folder: an existing folder.
        highest: whether the highest value is best.
        unpruned: the number of trials that end before any is pruned.

    Raises:
        RunError: the journal is damaged.
    """

    def __init__(self, folder: Path, highest: bool, unpruned: int):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        path = folder / JOURNAL
        try:
            lock: Any = _JournalLock(path)
            self.storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=_NAME,
                direction="maximize" if highest else "minimize",
                pruner=MedianPruner(n_startup_trials=unpruned),
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise RunError(f"{path} is damaged ({error}); give another folder") from None

    @contextmanager
    def taken(self, keys: Sequence[Tuned], trials: int, seed: int) -> Iterator[Trial | None]:
        """A trial to work on in the block, which no other process takes meanwhile; None if there is none.

        A trial left behind by a killed process comes first, then a new one, up to `trials` in all. Its values depend
        on (`seed`, its number, the key) and the trials that have ended, so that a kill does not change them.
        """
        with ExitStack() as claims:
            with FileLock(self.folder / _PICKING):
                trial = self._picked(claims, trials)
                if trial is not None:
                    for index, one in enumerate(keys):
                        drawn = np.random.SeedSequence([seed, trial.number, index]).generate_state(1)[0]
                        self.study.sampler = TPESampler(seed=int(drawn))
                        _suggest(trial, one)
            yield trial

    def _picked(self, claims: ExitStack, most: int) -> Trial | None:
        existing = self.study.get_trials(deepcopy=False)
        study_id = self.storage.get_study_id_from_name(_NAME)
        for frozen in existing:
            if frozen.state != TrialState.RUNNING or not self._claimed(claims, frozen.number):
                continue
            number = self.storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number)
            if self.storage.get_trial(number).state == TrialState.RUNNING:  # else its process has just ended it
                return Trial(self.study, number)
        if len(existing) >= most:
            return None
        trial = self.study.ask()
        if not self._claimed(claims, trial.number):
            raise RunError(f"{self.folder / _CLAIMS}: {trial_name(trial.number)} is in use; give another folder")
        return trial

    def _claimed(self, claims: ExitStack, number: int) -> bool:
        try:
            claims.enter_context(RunLock(self.folder / _CLAIMS / trial_name(number)))
        except InUse:
            return False
        return True


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the lock under which processes begin a study and take trials."""
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _PICKING)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def importances(journal: StudyJournal, ended: int) -> dict[str, float]:
    """The share of each key in what makes trials good (PED-ANOVA, Watanabe et al. 2023); {} for fewer than 8 trials."""
    if ended < 8:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(journal.study)


def _suggest(trial: Trial, one: Tuned) -> None:
    """Draw the value of a key, unless the trial has one from before a kill."""
    if isinstance(one, Choices):
        trial.suggest_categorical(one.key, one.ends)
    elif one.whole:
        trial.suggest_int(one.key, int(one.low), int(one.high), log=one.log)
    else:
        trial.suggest_float(one.key, one.low, one.high, log=one.log)


class _JournalLock:
    """The lock of the writers of a journal. Optuna's own leaves a file behind in a kill, and waits for half a minute.

    A writer finds the journal without the torn line of one that was killed, since it would append to that.
    """

    def __init__(self, journal: Path):
        self._journal, self._lock = journal, FileLock(journal.with_name(_WRITING))

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _drop_torn_line(self._journal)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
    content = path.read_bytes()
    files.replace_file(path, content[: content.rfind(b"\n") + 1])

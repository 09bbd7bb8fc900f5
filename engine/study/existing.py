"""What a study's directory holds from earlier starts, compared with what it would be made from now.

Before anything is trained: a store rebuilt under its name, a source that has changed, an encoder exchanged in its
folder would otherwise end as trials of two kinds in one table.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penstock.engine.errors import RunError
from penstock.engine.study.directory import read_study, trials_folder
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.fingerprints import MadeFrom, changed, changed_precision, changed_setting, difference
from penstock.engine.study.predictions import check_predictions
from penstock.engine.study.trials import Trial, TrialResult, read_results, result_path, trial_named

if TYPE_CHECKING:
    from penstock.engine.data.store import Store


@dataclass(frozen=True)
class _Begun:
    """What a trial in progress was begun with, as far as its run.json can be read: the run itself says what is wrong.

    Attributes:
        identity: all that decides the run's result; empty where it cannot be read.
        precision: that it is trained in; None where an earlier penstock began it.
    """

    identity: Mapping[str, Any]
    precision: str | None

    @classmethod
    def read(cls, path: Path) -> "_Begun":
        try:
            record = json.loads(path.read_text())
            identity, precision = record.get("identity", {}), record.get("precision")
        except (OSError, ValueError, AttributeError):
            return cls({}, None)
        return cls(
            identity if isinstance(identity, dict) else {},
            precision if isinstance(precision, str) else None,
        )


class Existing:
    """
    Attributes:
        results: of all trials that are over, by trial; those that failed are not among them: they are run again.
        old: the names of trials that an earlier penstock wrote, which do not say what they were made from.
        study: study.json as the last start left it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[Trial, TrialResult] = {
            result.trial: result for result in read_results(trials_folder(folder)) if result.status != "failed"
        }
        for result in self.results.values():
            if result.predictions is not None:
                check_predictions(trials_folder(folder), result.predictions)
        self.old = [result.trial.name for result in self.results.values() if result.made_from is None]
        self.study = read_study(folder)
        self._runs = {path.parent.name: _Begun.read(path) for path in (folder / "runs").glob("*/run.json")}

    def check_data(self, part: Literal["train", "test"], store: "Store") -> None:
        """
        Raises:
            RunError: something was made from other data than the store holds.
        """
        what = f"the {'training' if part == 'train' else 'test'} data ({store.path})"
        recorded = self.study.get(part, {}).get("fingerprint")
        for trial, result in self.results.items():
            then = recorded if result.made_from is None else getattr(result.made_from, part)
            if then is not None and then != store.fingerprint:
                raise self._refusal(
                    result_path(trials_folder(self.folder), trial), changed(what, then, store.fingerprint)
                )
        if part == "train":
            for name, run in self._runs.items():
                # of a student, the training data has its teacher's logits in it
                then = run.identity.get("stores") or run.identity.get("training data", store.fingerprint)
                if then != store.fingerprint:
                    raise self._refusal(self.folder / "runs" / name, changed(what, then, store.fingerprint))

    def check_trials(self, expected: Callable[[Trial], MadeFrom]) -> None:
        """
        Args:
            expected: what a trial would be made from now.

        Raises:
            RunError: a trial was made from something else, or one in progress was begun with something else.
        """
        for trial, result in self.results.items():
            if trial.family not in FAMILIES:
                continue  # of a later penstock; no report shows it
            now = expected(trial)
            found = self._encoder_then(now) if result.made_from is None else difference(result.made_from, now)
            if found:
                raise self._refusal(result_path(trials_folder(self.folder), trial), found)
        for name, run in self._runs.items():
            begun = trial_named(name)
            if begun is None or begun in self.results:
                continue
            now = expected(begun)
            settings = {key: value for key, value in run.identity.items() if "." in key}
            found = self._encoder_then(now) or (changed_setting(settings, now.settings) if settings else None)
            if found := found or changed_precision(run.precision, now.precision):
                raise self._refusal(self.folder / "runs" / name, found)

    def check_pretraining(self, folder: Path) -> None:
        """
        Args:
            folder: of the study's pretraining.

        Raises:
            RunError: a trial in progress has begun with a pretraining that is no longer there.
        """
        if (folder / "run" / "run.json").exists():
            return
        for name in self._runs:
            begun = trial_named(name)
            if begun is not None and begun not in self.results and FAMILIES[begun.family].pretrains:
                run = self.folder / "runs" / name
                raise RunError(f"{run} began with a pretraining that is no longer in {folder}: remove it too")

    def _encoder_then(self, now: MadeFrom) -> str | None:
        """How the encoder differs from what it was at the last start."""
        then = self.study.get("encoders", {}).get(now.settings.get("model.encoder"))
        return changed("the encoder's files", then, now.encoder) if then not in (None, now.encoder) else None

    def _refusal(self, path: Path, found: str) -> RunError:
        return RunError(
            f"{path} was made from something else than is there now: {found}. Put back what was there, give another "
            f"--out, or remove {remains(self.folder)} to train all trials again"
        )


def check_one_kind(folder: Path, study: Mapping[str, Any], results: Sequence[TrialResult]) -> None:
    """What can be said without the data: the finished trials are of the study's stores, a family's of one encoder.

    Raises:
        RunError: they are not.
    """
    first: dict[str, tuple[str, str | None]] = {}  # family -> (a trial, its encoder)
    for result in results:
        if result.made_from is None or result.status == "failed":
            continue
        path = result_path(trials_folder(folder), result.trial)
        for part, then in (("train", result.made_from.train), ("test", result.made_from.test)):
            now = study.get(part, {}).get("fingerprint", then)
            if then != now:
                found = changed(f"the {part} data", then, now)
                raise RunError(f"{path} is not of this study: {found}; remove it, and run penstock study again")
        name, encoder = first.setdefault(result.trial.family, (result.trial.name, result.made_from.encoder))
        if encoder != result.made_from.encoder:
            raise RunError(
                f"{path} and {name}.json started from different encoders ({result.made_from.encoder} and {encoder}); "
                "remove one of them, and run penstock study again"
            )


def remains(folder: Path) -> str:
    """What to remove of a study so that all of it is made again."""
    return f"{trials_folder(folder).name}, costs, data and runs in {folder}"

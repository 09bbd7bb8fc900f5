"""Made the folders beside it, with penstock as of this file's first commit: a store for training and one for tests, a
run that was stopped between two checkpoints, and a study with two trials over, one under way and one to come. The run
`run-unsealed` was added by the last penstock whose checkpoints had no checksums.

Run in this folder, it makes them again, in the format of the penstock that is installed: do so only on purpose.
"""

import csv
import random
import signal
from pathlib import Path

import test_old_formats

from penstock.engine.data.prepare import prepare
from penstock.engine.study import study as study_module
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.step import Stepper
from penstock.engine.training.train import train

WORDS = {"bad": "awful dull", "fair": "plain usual", "good": "lovely superb"}


def write_texts(file: Path, rows: int) -> None:
    draw = random.Random(rows)
    with open(file, "w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["text", "label"])
        for number in range(rows):
            label = ("bad", "fair", "good")[number % 3]
            words = [*draw.choices(("the", "a", "film", "plot"), k=4), draw.choice(WORDS[label].split())]
            table.writerow([" ".join(words), label])


def stopped_after(steps: int):
    """A step that is told to stop once `steps` have been taken."""
    take_step, taken = Stepper.__call__, 0

    def step(self, *args, **options):
        nonlocal taken
        taken += 1
        if taken == steps:
            signal.raise_signal(signal.SIGTERM)
        return take_step(self, *args, **options)

    return step


def expect_stop(work) -> None:
    take_step = Stepper.__call__
    try:
        work()
    except Interrupted:
        return
    finally:
        Stepper.__call__ = take_step
    raise AssertionError("nothing stopped it")


def main() -> None:
    write_texts(Path("train.csv"), 60)
    write_texts(Path("test.csv"), 30)
    train_store = prepare("train.csv", "train", tokenizer="train:wordpiece:100", max_length=16, progress=False)
    prepare("test.csv", "test", like="train", progress=False)

    def stopped_run() -> None:
        Stepper.__call__ = stopped_after(12)
        train(load_settings(None, test_old_formats.RUN), train_store, "run", progress="none")

    expect_stop(stopped_run)

    def stopped_unsealed_run() -> None:
        Stepper.__call__ = stopped_after(3)
        train(load_settings(None, test_old_formats.UNSEALED), train_store, "run-unsealed", progress="none")

    expect_stop(stopped_unsealed_run)

    def stopped_study() -> None:
        def run_third_slowly(task):
            if len(over) == 2:
                Stepper.__call__ = stopped_after(2)
            over.append(task)
            return study_module.run_cell(task)

        over: list = []
        study_module.run_study(test_old_formats.STUDY, "study", progress=False, run_cell=run_third_slowly)

    expect_stop(stopped_study)
    here = f"{Path.cwd()}/"
    for record in Path().glob("**/run.json"):
        record.write_text(record.read_text().replace(here, ""))


if __name__ == "__main__":
    main()

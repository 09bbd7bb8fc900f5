"""Kills trainings and studies with SIGKILL and lets the same command go on: all must end as if nothing had been.

    python tests/kill_campaign.py --out FOLDER        the whole campaign; the same command goes on with it
    python tests/kill_campaign.py --out FOLDER --rounds lstm=5,encoder=2,ranks=1

A folder in memory (/dev/shm) makes it quicker: most of a small run is fsync.

A round is one run (or study) that is killed once at least, then gone on with until it is over, and compared with one
that was never interrupted: every file that either has, but for times. Kills fall at any moment of the command, or while
a checkpoint is being written, or before a system call of that (with half of what it was to write). This process
imports everything once and trains nothing, so that a copy of it (fork) begins a command in no time.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import json
import os
import pickle
import random
import re
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROUNDS = {"lstm": 100, "encoder": 50, "study": 20, "ranks": 20, "distil": 20, "pretrain": 20}
CLOCK = {"seconds", "tokens_per_second", "examples_per_second", "data_wait", "mfu", "time", "checkpoint_seconds"}
CLOCK |= {"train_seconds", "train_cpu_seconds", "wall_seconds", "cpu_hours"}
CLOCK |= {"cpu_seconds"}  # of a pretraining
CLOCK |= {"teacher_seconds", "teacher_cpu_seconds", "reading_seconds", "reading_cpu_seconds", "again_seconds"}
CLOCK |= {"jobs"}  # a trial whose process died is run again with nothing beside it
OFTEN = ["data.tokens_per_batch=256", "training.epochs=3", "training.patience=0", "training.tensorboard=false"]
OFTEN += ["training.learning_rate=1e-2", "training.log_every_steps=1", "training.checkpoint_every_steps=1"]
OFTEN += ["training.evaluate_every_steps=4", "training.precision=fp32", "training.rank_timeout=60"]
LSTM = ["model.hidden_size=32", "model.embedding_size=32", "model.num_layers=1", "model.embedding_dropout=0.2", *OFTEN]
VARIANTS = {
    "lstm": {
        "plain": LSTM,
        "calibrated, bf16": [*LSTM, "training.calibrate=true", "training.precision=bf16"],
        "a checkpoint in three steps": [*LSTM, "training.checkpoint_every_steps=3", "training.keep_checkpoints=1"],
    },
    "encoder": {
        "plain": ["model.kind=encoder", "model.encoder=ENCODER", *OFTEN],
        "adapters": ["model.kind=encoder", "model.encoder=ENCODER", "model.lora_rank=4", *OFTEN],
    },
    "ranks": {"plain": [*LSTM, "data.batches_per_step=2"]},
    "distil": {
        "plain": ["--train", "TRAIN", *LSTM],
        "of no labels": [*LSTM, "distillation.texts=100"],
        "a bag": ["--train", "TRAIN", "--model", "bag", *(one for one in OFTEN if "precision" not in one)],
    },
    "pretrain": {
        "masked": [*LSTM, "pretraining.candidates=50"],
        "replaced": [*LSTM, "pretraining.objective=replaced"],
        "encoder": ["model.kind=encoder", "model.encoder=ENCODER", *OFTEN],
    },
    "study": {"plain": ["model.num_layers=1", "training.epochs=2", "training.checkpoint_every_steps=2"]},
}
NEEDED = ["pandas", "pyarrow.pandas_compat", "torch.distributed", "tokenizers.trainers"]
NEEDED += [f"transformers.models.{name}" for name in ("auto.modeling_auto", "auto.tokenization_auto")]
NEEDED += ["transformers.models.bert.modeling_bert", "transformers.tokenization_utils_tokenizers"]
NEEDED += ["penstock.engine.study.study", "penstock.engine.study.report", "penstock.engine.training.predictions"]
NEEDED += ["penstock.engine.training.train", "penstock.engine.training.command", "penstock.engine.training.distil"]
STUDY = ["--sizes", "60,120", "--seeds", "1", "--jobs", "2"]
STUDY += ["--families", "linear,lstm,lstm-pretrained,lstm-distilled,encoder", "--pretrain-tokens", "20000"]
STUDY += ["lstm-pretrained.model.hidden_size=8"]
STUDY += ["--max-test", "50", "lstm-distilled.model.hidden_size=8"]
STUDY += ["lstm.model.hidden_size=8", "encoder.training.checkpoint_every_steps=1"]


TEACHERS = {"teacher-1": "lstm", "teacher-2": "encoder"}


@dataclass
class Kill:
    """When a copy of this process kills itself. None: never.

    Attributes:
        write: the number of the checkpoint that it is writing then, from 1; after: seconds since it began to.
        call: the number of the system call before which it dies, from 1.
    """

    write: int | None = None
    after: float = 0.0
    call: int | None = None


@dataclass
class Ended:
    """Attributes: killed: by us. writing: a checkpoint was being written then. code: exit code. errors: stderr."""

    killed: bool
    writing: bool
    code: int
    errors: str


@dataclass
class Place:
    """Where the campaign keeps its data, its uninterrupted runs and those under way."""

    folder: Path
    durations: dict[str, float] = field(default_factory=dict)

    def results_file(self) -> Path:
        return self.folder / "rounds.jsonl"

    def done(self) -> list[dict[str, Any]]:
        file = self.results_file()
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def in_a_copy(work: Callable[[], Any], errors: Path, environment: dict[str, str] | None = None) -> int:
    """The process id of a copy of this process, with a process group of its own, which does the work and ends."""
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # as below: whoever kills the group may come first
            os.setpgid(child, child)
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        os.environ.update(environment or {})
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            work()
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def command(arguments: list[str], kill: Kill | None = None) -> Callable[[], None]:
    def work() -> None:
        from penstock.engine import cli

        if kill is not None:
            arm(kill)
        sys.argv = ["penstock", *arguments]
        cli.main()

    return work


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill: Kill) -> None:
    """Makes this process kill itself at the moment that is asked for."""
    from penstock.engine import files
    from penstock.engine.training import saver

    if kill.write is not None:
        write, numbers = saver.write_checkpoint, itertools.count(1)

        @functools.wraps(write)
        def watched(*arguments: Any, **options: Any) -> None:
            if next(numbers) == kill.write:
                threading.Timer(kill.after, die).start()
            write(*arguments, **options)

        saver.write_checkpoint = watched
    if kill.call is not None:
        files.os = Watched(kill.call)  # type: ignore[attr-defined]


class Watched:
    """Stands in for the `os` of `penstock.engine.files` and dies before a system call that changes something."""

    CALLS = ("write", "fsync", "replace", "rename", "chmod", "open", "link")

    def __init__(self, at: int) -> None:
        self._at, self._numbers = at, itertools.count(1)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in self.CALLS:
            return function

        def watched(*arguments: Any, **options: Any) -> Any:
            if next(self._numbers) == self._at:
                if name == "write":
                    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                die()
            return function(*arguments, **options)

        return watched


def has_ended(process: int, seconds: float | None) -> bool:
    """Waits for so long for the end of a process that is a child of ours, which it then still is."""
    descriptor = os.pidfd_open(process)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def code_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def children_of(process: int) -> list[int]:
    """Those that run trials, of a study."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


class Campaign:
    def __init__(self, folder: Path) -> None:
        self.place = Place(folder)
        self.data = folder / "data"
        self.whole: dict[tuple[str, str], Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def errors(self) -> Path:
        return self.place.folder / "errors.txt"

    def logits(self) -> Path:
        return self.data / "logits"

    def clear(self, run: Path) -> None:
        """Nothing is left of a run, nor of what its teachers said."""
        for folder in (run, self.logits(), self.data / "train.logits"):
            shutil.rmtree(folder, ignore_errors=True)

    def must(self, work: Callable[[], Any]) -> None:
        process = in_a_copy(work, self.errors())
        if code := code_of(process):
            raise SystemExit(f"exit code {code}:\n{self.errors().read_text()}")

    def prepare(self) -> None:
        if not (self.data / "texts.csv").exists():
            shutil.rmtree(self.data, ignore_errors=True)
            self.data.mkdir()
            self.must(lambda: make_data(self.data))
            self.must(lambda: make_teachers(self.data))

    # -- commands ------------------------------------------------------------------------------------------------

    def arguments(self, scenario: str, variant: str, run: Path) -> list[str]:
        settings = [one.replace("ENCODER", str(self.data / "encoder")) for one in VARIANTS[scenario][variant]]
        if scenario == "distil":
            settings = [one.replace("TRAIN", str(self.data / "train")) for one in settings]
            teachers = [part for name in TEACHERS for part in ("--teacher", str(self.data / name))]
            texts = ["--unlabelled", str(self.data / "raw"), "--logits", str(self.logits()), "--drop-overlap"]
            return ["distil", *teachers, *texts, "--eval", str(self.data / "test"), "--out", str(run), *settings]
        if scenario == "pretrain":
            return ["pretrain", "--texts", str(self.data / "raw"), "--out", str(run), *settings]
        if scenario == "study":
            sources = ["--train", str(self.data / "train.csv"), "--test", str(self.data / "test.csv")]
            sources += ["--text", "text", "--label", "label", "--encoder", str(self.data / "encoder")]
            return ["study", *sources, *STUDY, "--out", str(run), *settings]
        stores = ["--train", str(self.data / "train"), "--eval", str(self.data / "test")]
        return ["train", *stores, "--out", str(run), *settings]

    def attempt(self, scenario: str, variant: str, run: Path, draw: random.Random | None) -> Ended:
        """One command; killed unless `draw` is None or it is over before."""
        if scenario == "ranks":
            return self._of_two_ranks(variant, run, draw)
        lasts = self.place.durations.get(f"{scenario}, {variant}", 0.0)
        kill, moment, victim = None, None, "group"
        before = being_written(run)
        if draw is not None and scenario == "study":
            moment, victim = draw.uniform(0, lasts), draw.choice(["group", "parent", "worker"])
        elif draw is not None:
            kill, moment = self._moment(draw, lasts)
        arguments = self.arguments(scenario, variant, run)
        began = time.monotonic()
        process = in_a_copy(quick_study(arguments) if scenario == "study" else command(arguments, kill), self.errors())
        killed = moment is not None and not has_ended(process, moment)
        if killed and victim == "worker":
            workers = children_of(process)
            killed = bool(workers)
            if workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
            code = code_of(process)
        else:
            if killed:
                os.killpg(process, signal.SIGKILL) if victim == "group" else os.kill(process, signal.SIGKILL)
            code = code_of(process)
            self._outlive(process)
        if kill is not None:
            killed = code == -signal.SIGKILL
        if draw is None:
            self.place.durations[f"{scenario}, {variant}"] = time.monotonic() - began
        return Ended(killed, being_written(run) not in (None, before), code, self.errors().read_text())

    def _moment(self, draw: random.Random, lasts: float) -> tuple[Kill | None, float | None]:
        kind = draw.choice(["any", "any", "writing", "writing", "call"])
        if kind == "any":
            return None, draw.uniform(0, lasts * 1.1)
        if kind == "call":
            return Kill(call=1 + int(draw.random() ** 2 * 400)), None
        return Kill(write=draw.randint(1, 14), after=draw.uniform(0, 0.03)), None

    def _outlive(self, group: int) -> None:
        """Waits until the workers of a killed study are gone: they are told of its death, and end."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)
        raise SystemExit(f"the workers of a killed study are still there after a minute (group {group})")

    def _of_two_ranks(self, variant: str, run: Path, draw: random.Random | None) -> Ended:
        """Kills both, or one of them: then the other has to end by itself, with a line."""
        lasts = self.place.durations.get(f"ranks, {variant}", 0.0)
        victims = draw.choice([[0, 1], [0], [1]]) if draw else []
        before = being_written(run)
        kill, moment = self._moment(draw, lasts) if draw else (None, None)
        if kill is not None:
            victims = [0]  # who writes
        rendezvous = self.place.folder / f"port-{os.getpid()}"
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        arguments = self.arguments("ranks", variant, run)
        began = time.monotonic()
        errors = [self.errors(), rendezvous.with_suffix(".other")]
        processes = [
            in_a_copy(
                command(arguments, kill if rank == 0 else None),
                errors[rank],
                {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in (0, 1)
        ]
        killed = moment is not None and not has_ended(processes[0], moment)
        if killed:
            for rank in victims:
                os.kill(processes[rank], signal.SIGKILL)
        codes = []
        for process in processes:
            if not has_ended(process, 120):
                raise SystemExit(f"a rank hangs after the other was killed: {[file.read_text() for file in errors]}")
            codes.append(code_of(process))
        if kill is not None:
            killed = codes[0] == -signal.SIGKILL
        said = "".join(file.read_text() for file in errors)
        errors[1].unlink()
        if killed and len(victims) == 1 and (left := codes[1 - victims[0]]) not in (12, 0):
            raise SystemExit(f"rank {1 - victims[0]} ended with {left} when the other was killed:\n{said}")
        if draw is None:
            self.place.durations[f"ranks, {variant}"] = time.monotonic() - began
        return Ended(killed, being_written(run) not in (None, before), next((code for code in codes if code), 0), said)

    # -- rounds --------------------------------------------------------------------------------------------------

    def uninterrupted(self, scenario: str, variant: str) -> Any:
        """What the round has to come to."""
        key = (scenario, variant)
        kept = self.place.folder / f"whole-{scenario}-{variant.replace(' ', '-')}.pickle"
        if key not in self.whole and kept.exists():
            name = f"{scenario}, {variant}"
            self.whole[key], self.place.durations[name] = pickle.loads(kept.read_bytes())
        if key not in self.whole:
            run = self.place.folder / "whole"
            for _ in range(2):  # the second one tells how long it takes: the first one also loads what is there to load
                self.clear(run)
                ended = self.attempt(scenario, variant, run, None)
                if ended.code:
                    raise SystemExit(f"{scenario}, {variant}: exit code {ended.code}\n{ended.errors}")
                found = self.content(scenario, run)
                if key in self.whole and (other := first_difference(self.whole[key], found)):
                    raise SystemExit(f"{scenario}, {variant}: two uninterrupted runs differ: {other}")
                self.whole[key] = found
                if scenario == "study":
                    break
            shutil.rmtree(run)
            kept.write_bytes(pickle.dumps((self.whole[key], self.place.durations[f"{scenario}, {variant}"])))
        return self.whole[key]

    def content(self, scenario: str, run: Path) -> Any:
        if scenario not in ("study", "pretrain"):
            out = run.with_suffix(".csv")
            out.unlink(missing_ok=True)
            self.must(command(["predict", str(run), str(self.data / "texts.csv"), "--out", str(out)]))
            return {**content_of(run), "predictions": out.read_bytes()}
        return content_of(run)

    def round(self, scenario: str, number: int) -> dict[str, Any]:
        """Kills and goes on until it is over; says what differs from an uninterrupted run."""
        variant = list(VARIANTS[scenario])[number % len(VARIANTS[scenario])]
        whole = self.uninterrupted(scenario, variant)
        run = self.place.folder / f"run-{scenario}"
        draw = random.Random(f"{scenario} {number}")
        kills = writing = attempts = 0
        while True:
            if not kills:
                self.clear(run)  # it was over before the kill: another try
            wanted = draw if not kills or (draw.random() < 0.4 and kills < 4) else None
            ended = self.attempt(scenario, variant, run, wanted)
            attempts += 1
            kills += ended.killed
            writing += ended.killed and ended.writing
            survived = ended.killed and scenario == "study" and ended.code == 0  # a worker's death is survived
            if ended.killed and not survived:
                continue
            if kills and not survived and ended.code == 12 and scenario == "ranks":
                continue
            if ended.code or "Traceback" in ended.errors:
                outcome = f"exit code {ended.code}: {ended.errors[-2000:]}"
                break
            if kills:
                outcome = first_difference(whole, self.content(scenario, run))
                break
            if attempts > 60:
                raise SystemExit(f"{scenario} {number}: no kill came in time")
        if outcome:
            shutil.rmtree(run.with_name(f"failed-{scenario}-{number}"), ignore_errors=True)
            shutil.move(run, run.with_name(f"failed-{scenario}-{number}"))
        shutil.rmtree(run, ignore_errors=True)
        return {
            "scenario": scenario,
            "number": number,
            "variant": variant,
            "kills": kills,
            "while_writing": writing,
            "difference": outcome,
        }

    def run(self, rounds: dict[str, int]) -> list[dict[str, Any]]:
        self.prepare()
        done = {(one["scenario"], one["number"]) for one in self.place.done() if not one["difference"]}
        for scenario, count in rounds.items():
            for number in range(count):
                if (scenario, number) in done:
                    continue
                result = self.round(scenario, number)
                with self.place.results_file().open("a") as out:
                    out.write(json.dumps(result) + "\n")
                if result["difference"]:
                    print(f"{scenario} {number} ({result['variant']}): {result['difference']}", flush=True)
        latest = {(one["scenario"], one["number"]): one for one in self.place.done()}
        return [one for key, one in latest.items() if key[1] < rounds.get(key[0], 0)]


# -- what a run came to ------------------------------------------------------------------------------------------------


def content_of(run: Path) -> dict[str, Any]:
    """{path: content} of all files of a run or a study, times taken out, tensors as their values."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = content_of_file(path, run)
    return found


_SPENT = re.compile(r", in [\d,]+ and [\d,]+ CPU seconds")  # of what a check says


def content_of_file(path: Path, run: Path) -> Any:
    if path.name == "training_state.pt":
        import torch

        state = torch.load(path, weights_only=True)
        state["counters"] = timeless(state["counters"])
        return {**state, "log_offset": None}
    if path.suffix == ".json" and "costs" in path.parts:
        return "a cost"
    named = path.name in ("checkpoint.json", "report.json", "study.json", "run.json", "cost.json")
    if named or (path.parent.name == "trials" and path.suffix == ".json"):
        content = json.loads(path.read_text().replace(str(run), "RUN"))  # a study's pretraining names its store
        return {key: value for key, value in timeless(content).items() if key != "crc32"}
    if path.name == "metrics.jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix in (".html", ".md", ".csv", ".png") or path.name == ".lock":
        return "there"  # they show report.json, costs and all
    return path.read_bytes()


def timeless(value: Any) -> Any:
    """Without times, and without the checksums and sizes of what holds times."""
    if isinstance(value, dict):
        left = {key: timeless(one) for key, one in value.items() if key not in CLOCK | {"log", "costs", "others"}}
        if isinstance(left.get("files"), dict) and "training_state.pt" in left["files"]:
            left["files"]["training_state.pt"] = None
        return left
    if isinstance(value, str):
        return _SPENT.sub("", value)
    return [timeless(one) for one in value] if isinstance(value, list) else value


def first_difference(one: Any, other: Any, where: str = "") -> str:
    """Where two trees of values differ first; empty where they do not."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return f"{where}/{key} is only in the {'uninterrupted' if key in one else 'killed'} one"
            if found := first_difference(one[key], other[key], f"{where}/{key}"):
                return found
        return ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for at, two in pairs if (found := first_difference(*two, f"{where}[{at}]"))), "")
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = type(one) is type(other) and one == other
    return "" if same else f"{where}: {one!r:.200} and {other!r:.200}"


def being_written(run: Path) -> int | None:
    """What tells the checkpoint that a killed run was writing from others; None if there is none."""
    folders = [run, run / "pretraining" / "run", *(run / "runs").glob("*")]
    places = [one / "checkpoints" / ".writing" for one in folders]
    return max((one.stat().st_mtime_ns for one in places if one.exists()), default=None)


# -- data --------------------------------------------------------------------------------------------------------------


def make_data(folder: Path) -> None:
    sys.path.insert(0, str(TESTS))
    from few_texts import write_texts
    from tiny_encoders import stock_model

    from penstock.engine.data.prepare import prepare

    for name, rows, seed in (("train", 240, 0), ("test", 90, 1)):
        write_texts(folder / f"{name}.csv", rows, seed)
    tokenizer = "train:wordpiece:150"
    train = prepare(str(folder / "train.csv"), folder / "train", tokenizer=tokenizer, max_length=32, progress=False)
    prepare(str(folder / "test.csv"), folder / "test", like=train.path, progress=False)
    stock_model("bert", vocab_size=train.vocab_size, max_position_embeddings=40).save_pretrained(folder / "encoder")
    train.tokenizer().save_pretrained(folder / "encoder")
    (folder / "texts.csv").write_text("text\na lovely film\nthe dull plot was awful\nusual music\n")


def make_teachers(folder: Path) -> None:
    """Two teachers, of the same texts, and unlabelled texts for them to read."""
    sys.path.insert(0, str(TESTS))
    from few_texts import write_texts

    from penstock.engine.data.prepare import prepare
    from penstock.engine.data.store import Store
    from penstock.engine.training.settings import load_settings
    from penstock.engine.training.train import train

    source, like = write_texts(folder / "raw.csv", 200, 7), folder / "train"
    raw = prepare(str(source), folder / "raw", like=like, unlabelled=True, progress=False)
    assert raw.num_examples == 200
    for name, kind in TEACHERS.items():
        settings = [one.replace("ENCODER", str(folder / "encoder")) for one in VARIANTS[kind]["plain"]]
        train(load_settings(None, settings), Store.open(like), folder / name, progress="none")


def quick_study(arguments: list[str]) -> Callable[[], None]:
    """A study that measures its families' costs once, in its own process, and whose workers are copies of it.

    With PENSTOCK_SPAWN=1 they are started as everywhere else, which takes most of the time.
    """

    def work() -> None:
        import multiprocessing

        from penstock.engine.study import measure_cost, study, workers

        def quick(family: str, settings: Any, train: Any, test: Any) -> Any:
            cost = measure_cost.measure(family, measure_cost.subject_of(settings, train), test, seconds=0.0)
            return dataclasses.replace(cost, others=None)

        measure_cost._MIN_RUNS = {1: 1, 32: 1}  # type: ignore[attr-defined]
        study.measure_cost = quick  # type: ignore[assignment]
        if not os.environ.get("PENSTOCK_SPAWN"):
            workers.get_context = lambda _: multiprocessing.get_context("fork")  # type: ignore[assignment]
        command(arguments)()

    return work


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def warm_up() -> None:
    """What a command needs, so that its copies find it there. Nothing may be computed: a copy has one thread alone."""
    for name in NEEDED:
        importlib.import_module(name)
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from penstock.engine import cli
    from penstock.engine.data import logits

    torch.set_num_threads(1)
    logits.ROWS_PER_PART = 16  # so that a reading has parts enough to be killed in
    get_checkpoint_conversion_mapping("bert")  # builds them all, once
    sys.argv = ["penstock", "train", "--settings"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main()  # what its options need


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "| what | rounds | kills | while a checkpoint was written | bit-identical |"
    yield "|---|---:|---:|---:|---:|"
    for scenario in ROUNDS:
        own = [one for one in results if one["scenario"] == scenario]
        if own:
            kills, writing = (sum(one[key] for one in own) for key in ("kills", "while_writing"))
            same = sum(not one["difference"] for one in own)
            yield f"| {scenario} | {len(own)} | {kills} | {writing} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the campaign's folder")
    parser.add_argument("--rounds", default=",".join(f"{name}={count}" for name, count in ROUNDS.items()))
    options = parser.parse_args()
    rounds = {name: int(count) for name, _, count in (one.partition("=") for one in options.rounds.split(","))}
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    warm_up()
    results = Campaign(options.out.absolute()).run(rounds)
    print("\n".join(table(results)))
    if any(one["difference"] for one in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""What training and answering keep of their speed on a busy machine.

    python benchmarks/training/loaded.py
    python benchmarks/training/loaded.py --work MiniLM --environment "GOMP_SPINCOUNT=0" --rounds 9

Four conditions: quiet; one process that computes on every core at equal priority, which leaves half of each core; one
such process, or ten, at the lowest priority (nice 19), which leave nearly all of it. A contestant is a kind of work in
an environment, in a process of its own, since OpenMP reads how its threads wait once, at its start. All of them live as
long as the benchmark and stand still (SIGSTOP) but for the one whose turn it is; a round is one turn of each in each
condition. What a turn gives is tokens by the wall clock. Everything is on generated reviews and the packaged encoder.
"""

import argparse
import contextlib
import mmap
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

CONDITIONS = {  # the other processes: how many, and how nice
    "quiet": (0, 0),
    "one a core": (os.cpu_count() or 1, 0),
    "one niced": (1, 19),
    "ten niced": (10, 19),
}
WORK = ("MiniLM", "lstm-1-256", "lstm-4-256", "predict", "padded")
TOKENS = 2048  # a batch: short steps, so that a turn has many
ROWS = 48  # of a padded batch: about as many tokens
SPIN = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=["MiniLM", "lstm-1-256", "predict", "padded"], choices=WORK)
    parser.add_argument("--environment", nargs="*", default=[""], help="NAME=VALUE,NAME=VALUE for a contestant each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--late", action="store_true", help="torch is imported before penstock, as in a notebook")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work, store, counter = options.worker
        _work(work, Path(store), Path(counter), options.late)
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-loaded-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        _store(folder / "store")
        contestants = {}
        for work in options.work:
            for environment in options.environment if work != "padded" else [""]:
                contestant = stack.enter_context(Contestant(work, environment, folder, options.late))
                contestants[f"{work} {environment}".strip()] = contestant
                contestant.warm_up()
        rates: dict[tuple[str, str], list[float]] = {}
        for number in range(options.rounds):
            for condition, others in CONDITIONS.items():
                with _others(*others):
                    for label, contestant in contestants.items():
                        rates.setdefault((label, condition), []).append(contestant.turn(options.seconds))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    width = max(map(len, contestants))
    print(f"tokens/s, median of {options.rounds} rounds (quartiles); of the same contestant's quiet turns")
    for label in contestants:
        quiet = statistics.median(rates[label, "quiet"])
        for condition in CONDITIONS:
            low, middle, high = statistics.quantiles(rates[label, condition], n=4, method="inclusive")
            share = f"{middle / quiet:5.2f}" if condition != "quiet" else "     "
            print(f"{label:{width}}  {condition:10}  {middle:9,.0f} ({low:,.0f} to {high:,.0f})  {share}")


@contextlib.contextmanager
def _others(count: int, niceness: int) -> Iterator[None]:
    """Processes beside ours."""
    begun = [subprocess.Popen(["nice", "-n", str(niceness), sys.executable, "-S", "-c", SPIN]) for _ in range(count)]
    time.sleep(0.5 if begun else 0)
    try:
        yield
    finally:
        for process in begun:
            process.kill()
            process.wait()


class Contestant:
    """A process that works without end while it may, and counts its tokens where we see them."""

    def __init__(self, work: str, environment: str, folder: Path, late: bool) -> None:
        counter = folder / f"{work}-{environment}".replace("/", "-")
        counter.write_bytes(bytes(8))
        command = [sys.executable, __file__, *(["--late"] if late else []), "--worker", work]
        self._process = subprocess.Popen(
            [*command, str(folder / "store"), str(counter)],
            env=os.environ | dict(pair.split("=", 1) for pair in environment.split(",") if pair),
            stdout=subprocess.DEVNULL,
        )
        with counter.open("r+b") as file:
            self._counter = mmap.mmap(file.fileno(), 8)

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def tokens(self) -> int:
        if self._process.poll() is not None:
            raise SystemExit(f"a contestant ended: exit code {self._process.returncode}")
        return struct.unpack("q", self._counter[:8])[0]

    def warm_up(self) -> None:
        while self.tokens() < 20 * TOKENS:
            time.sleep(0.1)
        self._process.send_signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> float:
        """Tokens a second, from the end of one step to the end of another."""
        self._process.send_signal(signal.SIGCONT)
        before, start = self._next(self.tokens())
        time.sleep(seconds)
        after, end = self._next(self.tokens())
        self._process.send_signal(signal.SIGSTOP)
        return (after - before) / (end - start)

    def _next(self, tokens: int) -> tuple[int, float]:
        while (now := self.tokens()) == tokens:
            time.sleep(0.001)
        return now, time.perf_counter()


def _store(folder: Path) -> None:
    from penstock.engine.data.prepare import prepare
    from penstock.engine.study.settings import packaged_encoder

    prepare("synthetic:reviews?n=4000&seed=0", folder, tokenizer=packaged_encoder(), progress=False)


def _work(work: str, store: Path, counter: Path, late: bool) -> None:
    if late:
        import torch

        torch.ones(512, 512) @ torch.ones(512, 512)
    with counter.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 8)

    def count(tokens: int) -> None:
        memory[:8] = struct.pack("q", struct.unpack("q", memory[:8])[0] + tokens)

    from penstock.engine.data.store import Store
    from penstock.engine.training.memory import keep_freed_memory

    keep_freed_memory()
    {"predict": _predict, "padded": _padded}.get(work, _train)(work, Store.open(store), count)


def _train(work: str, store: Any, count: Any) -> None:
    from penstock.engine.study.settings import packaged_encoder
    from penstock.engine.training.settings import load_settings
    from penstock.engine.training.step import Stepper
    from penstock.engine.training.train import train

    class Counted(Stepper):
        def __call__(self, batches: list[Any], **rest: Any) -> Any:
            report = super().__call__(batches, **rest)
            count(sum(batch.tokens.values.numel() for batch in batches))
            return report

    model = [f"model.encoder={packaged_encoder()}"] if work == "MiniLM" else [f"model.preset={work}"]
    kind = ["model.kind=encoder"] if work == "MiniLM" else []
    fixed = ["data.validation_fraction=0", "training.max_steps=1000000", f"data.tokens_per_batch={TOKENS}"]
    settings = load_settings(None, [*kind, *model, *fixed])
    with tempfile.TemporaryDirectory() as folder, mock.patch("penstock.engine.training.loop.Stepper", Counted):
        train(settings, store, Path(folder) / "run", progress="none", device="cpu")


def _predict(work: str, store: Any, count: Any) -> None:
    """Answers of the encoder, in batches."""
    import torch

    from penstock.engine.data.loader import Loader
    from penstock.engine.data.plan import PlanParameters
    from penstock.engine.models import build_model
    from penstock.engine.study.settings import packaged_encoder
    from penstock.engine.training.precision import autocast
    from penstock.engine.training.settings import load_settings

    settings = load_settings(None, ["model.kind=encoder", f"model.encoder={packaged_encoder()}"])
    model: Any = build_model(
        settings.model,
        vocab_size=store.vocab_size,
        num_labels=store.num_labels,
        label_names=store.label_names,
        tokenizer=store.tokenizer(),
    ).eval()
    loader = Loader(store, seed=0, parameters=PlanParameters(tokens_per_batch=TOKENS))
    batches = list(islice(loader, 50))
    with torch.inference_mode(), autocast("bf16", torch.device("cpu")):
        while True:
            for batch in batches:
                model(batch.tokens, **batch.types())
                count(batch.tokens.values.numel())


def _padded(work: str, store: Any, count: Any) -> None:
    """The loop that one writes: the stock encoder, padded batches of like lengths, bf16."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForSequenceClassification

    from penstock.engine.study.settings import packaged_encoder

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        packaged_encoder(), num_labels=store.num_labels, trust_remote_code=False
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    order = np.argsort(store.lengths, kind="stable")
    while True:
        for place in np.random.default_rng(0).permutation(len(order) // ROWS):
            rows = order[place * ROWS :][:ROWS]
            texts = [torch.from_numpy(store.tokens(int(row)).astype(np.int64)) for row in rows]
            lengths, labels = (
                torch.from_numpy(store.lengths[rows].astype(np.int64)),
                torch.from_numpy(store.labels[rows].astype(np.int64)),
            )
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=ids, attention_mask=mask).logits
            F.cross_entropy(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            count(int(lengths.sum()))


if __name__ == "__main__":
    main()

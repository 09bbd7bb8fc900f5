"""What a checkpoint a minute takes of a training's throughput: a BERT-base of random weights, 110 M parameters, trained
for some steps by `train`, with a checkpoint every few of them.

    OMP_NUM_THREADS=2 python benchmarks/training/checkpoint.py

A checkpoint takes two things. The step waits while its tensors are copied: all cores stand still for that time. And a
thread beside it computes for some seconds, which one of the cores is not there for the steps. The share of a minute
that they are together is what throughput loses with a checkpoint a minute. Both are counted in seconds of a processor,
which other work on the machine does not change much; the step's wait is given by the clock as well.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from penstock.benchmarks.random_store import word_tokenizer, write_store
from penstock.engine.training import loop
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train
from penstock.engine.training.writer import Writer

VOCABULARY, MINUTE = 30_522, 60.0


class Times:
    """Seconds of each checkpoint: that the step waited, by the clock and of its thread; of the thread that writes."""

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.copying: list[float] = []
        self.writing: list[float] = []
        self.written: list[float] = []

    def watch(self) -> None:
        checkpoint, start = loop.Loop._checkpoint, Writer.start
        times = self

        def timed_checkpoint(loop: Any, **links: bool) -> None:
            loop.saver.wait()  # at one a minute the one before is long over
            clock, own = time.perf_counter(), time.thread_time()
            checkpoint(loop, **links)
            times.waited.append(time.perf_counter() - clock)
            times.copying.append(time.thread_time() - own)

        def timed_start(writer: Writer, action: Callable[[], None]) -> None:
            def timed() -> None:
                clock, own = time.perf_counter(), time.thread_time()
                action()
                times.written.append(time.perf_counter() - clock)
                times.writing.append(time.thread_time() - own)

            start(writer, timed)

        loop.Loop._checkpoint = timed_checkpoint  # type: ignore[method-assign]
        Writer.start = timed_start  # type: ignore[method-assign]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--every", type=int, default=2, help="steps from one checkpoint to the next")
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--cores", type=int, default=2, help="of the machine that it is for")
    parser.add_argument("--folder", type=Path, help="on the disk to write to")
    options = parser.parse_args(arguments)
    times = Times()
    times.watch()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        store = write_store(folder / "store", np.full(options.tokens * 4, 64), VOCABULARY)
        config = transformers.BertConfig(vocab_size=VOCABULARY, num_hidden_layers=options.layers, pad_token_id=1)
        transformers.BertModel(config).save_pretrained(folder / "encoder")
        word_tokenizer(VOCABULARY).save_pretrained(folder / "encoder")
        settings = load_settings(
            None,
            [
                *("model.kind=encoder", f"model.encoder={folder / 'encoder'}", f"training.max_steps={options.steps}"),
                *(f"data.tokens_per_batch={options.tokens}", f"training.checkpoint_every_steps={options.every}"),
                *("data.validation_fraction=0", "training.tensorboard=false"),
            ],
        )
        began = time.process_time()
        result = train(settings, store, folder / "run", progress="none")
        spent = time.process_time() - began
        size = sum(file.stat().st_size for file in (folder / "run" / "last").iterdir())
    report(options, times, result, spent, size)


def report(options: argparse.Namespace, times: Times, result: Any, spent: float, size: int) -> None:
    usual = slice(1, None)  # the first one makes the buffers
    copying, writing = (statistics.median(own[usual]) for own in (times.copying, times.writing))
    waited, written = (statistics.median(own[usual]) for own in (times.waited, times.written))
    beside = writing / options.cores
    threads = torch.get_num_threads()
    print(f"{result.parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB a checkpoint, {len(times.writing)} of them")
    print(f"the step waits: {copying:.2f} s of its thread, {waited:.2f} s by the clock (first {times.waited[0]:.2f})")
    print(f"the writer: {writing:.2f} s of its thread, {written:.2f} s by the clock")
    print(f"all of the run: {spent:.1f} s of processors for {result.steps} steps of {threads} threads")
    print(f"of a minute of {options.cores} cores: {(copying + beside) / MINUTE:.2%}")
    print(f"the same with the wait by the clock: {(waited + beside) / MINUTE:.2%}")


if __name__ == "__main__":
    main()

"""What is measured in processes of their own: time and memory from the first touch on, libraries loaded before.

Each function returns seconds, by the clock and of the processor, and the megabytes by which the process grew at most.
"""

import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from penstock.benchmarks.memory import own_bytes

TOKENS_PER_BATCH = 16_384
ROWS_PER_BATCH = 221  # as many as 16k tokens hold in the mean


def measured(work: Callable[[], Any]) -> dict[str, float]:
    def status(name: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: proc(5)
    before, begin, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
    kept = work()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    del kept
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": status("VmHWM") - before}


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(4.0, 0.8, count).clip(3, 512).astype(np.int32)


# planning an epoch


def plan_penstock(count: int, mode: str) -> dict[str, float]:
    from penstock.engine.data.plan import PlanParameters, plan_epoch

    lengths = lengths_of(count)
    return measured(lambda: plan_epoch(lengths, "store", 0, 1, PlanParameters(TOKENS_PER_BATCH, 8, mode)))  # type: ignore[arg-type]


def batch_by_size(lengths: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """The idea of fairseq's batch_by_size, in numpy: sort (by length, ties at random), then close a batch where its
    longest times its count would pass the budget; shuffle the batches."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    ordered = lengths[order].astype(np.int64)
    bounds = [0]
    while bounds[-1] < len(order):
        begin = bounds[-1]
        # the greatest count with count * longest <= budget: the lengths ascend, so it can be found by bisection
        most = min(len(order) - begin, TOKENS_PER_BATCH // max(1, int(ordered[begin])))
        padded = np.arange(1, most + 1) * ordered[begin : begin + most]
        bounds.append(begin + max(1, int(np.searchsorted(padded, TOKENS_PER_BATCH, side="right"))))
    batches = [order[a:b] for a, b in pairwise(bounds)]
    random.shuffle(batches)  # type: ignore[arg-type]
    return batches


def plan_batch_by_size(count: int) -> dict[str, float]:
    lengths = lengths_of(count)
    return measured(lambda: batch_by_size(lengths))


def plan_length_grouped(count: int) -> dict[str, float]:
    """transformers' sampler, given the lengths as the list that it wants."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = lengths_of(count).tolist()
    return measured(lambda: list(LengthGroupedSampler(ROWS_PER_BATCH, lengths=lengths, generator=torch.Generator())))


# opening


def open_penstock(path: str, reader: str) -> dict[str, float]:
    from penstock.engine.data.store import Store

    return measured(lambda: Store.open(path, reader))  # type: ignore[arg-type]


def open_load_from_disk(path: str) -> dict[str, float]:
    import datasets

    return measured(lambda: datasets.load_from_disk(path))


def open_streaming(path: str) -> dict[str, float]:
    from streaming import StreamingDataset

    return measured(lambda: StreamingDataset(local=path, batch_size=ROWS_PER_BATCH))


# to the middle of an epoch and the first batch there


def seek_penstock(path: str) -> dict[str, float]:
    from penstock.engine.data.loader import Loader
    from penstock.engine.data.plan import PlanParameters
    from penstock.engine.data.store import Store

    parameters = PlanParameters(TOKENS_PER_BATCH)
    store = Store.open(path)
    state = Loader(store, seed=0, parameters=parameters).state_dict()
    state["epoch"], state["step"] = 1, int(store.num_tokens / TOKENS_PER_BATCH / 2)

    def work() -> object:
        return next(iter(Loader(Store.open(path), seed=0, parameters=parameters, start_state=state)))

    return measured(work)


def _rows(path: str) -> Any:
    import datasets

    return datasets.load_from_disk(path).with_format("numpy")


def seek_stateful_data_loader(path: str) -> dict[str, float]:
    """torchdata's: the state of its random sampler goes on by drawing again and counting up."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    data = _rows(path)

    def make() -> StatefulDataLoader:
        return StatefulDataLoader(data, batch_size=ROWS_PER_BATCH, shuffle=True, collate_fn=list)

    loader = make()
    next(iter(loader))
    state = loader.state_dict()
    batches = len(loader) // 2
    state["_sampler_iter_yielded"] = state["_num_yielded"] = batches
    of_sampler = state["_sampler_iter_state"]
    of_sampler["samples_yielded"] = of_sampler["sampler_iter_state"]["yielded"] = batches * ROWS_PER_BATCH

    def work() -> object:
        resumed = make()
        resumed.load_state_dict(state)
        return next(iter(resumed))

    return measured(work)


def seek_trainer(path: str) -> dict[str, float]:
    """transformers' Trainer: accelerate's skip_first_batches over the data loader of the epoch."""
    from accelerate.data_loader import skip_first_batches
    from torch.utils.data import DataLoader

    data = _rows(path)

    def work() -> object:
        loader = DataLoader(data, batch_size=ROWS_PER_BATCH, shuffle=True, collate_fn=list)
        return next(iter(skip_first_batches(loader, len(loader) // 2)))

    return measured(work)


def seek_streaming(path: str) -> dict[str, float]:
    from streaming import StreamingDataset

    def work() -> object:
        data = StreamingDataset(local=path, batch_size=ROWS_PER_BATCH, shuffle=True, num_canonical_nodes=1)
        state = data.state_dict(0, False)
        state = {**(state or {}), "epoch": 1, "sample_in_epoch": data.size // 2, "num_canonical_nodes": 1}
        state |= {"shuffle_seed": data.shuffle_seed, "initial_physical_nodes": 1}
        data.load_state_dict(state)
        return next(iter(data))

    return measured(work)


# the memory of an epoch


def anonymous_megabytes() -> float:
    return own_bytes(os.getpid()) / 2**20


def memory_of(epoch: Callable[[], Iterator[int]], batches: int) -> dict[str, Any]:
    """Growth of memory over two epochs, measured in a hundred places of the second, once all that is kept is full.

    Least squares through all but its first tenth: megabytes for a million rows, and the standard error.
    """
    every = max(1, batches // 100)
    rows = sum(epoch())
    measured_at = np.zeros((2, batches // every + 1))  # made beforehand: it must not grow while memory is measured
    seen = 0
    for number, size in enumerate(epoch()):
        seen += size
        if number % every == 0:
            measured_at[:, number // every] = seen / 1e6, anonymous_megabytes()
    x, y = measured_at[:, max(1, batches // every // 10) : -(-batches // every)]
    centred = x - x.mean()
    found = float((centred * y).sum() / (centred**2).sum())
    residual = y - y.mean() - found * centred
    error = float(np.sqrt((residual**2).sum() / (len(x) - 2) / (centred**2).sum()))
    return {"rows": rows, "megabytes_per_million_rows": found, "error": error, "first": y[0], "last": y[-1]}


def memory_penstock(path: str) -> dict[str, Any]:
    from penstock.engine.data.loader import Loader
    from penstock.engine.data.plan import PlanParameters
    from penstock.engine.data.store import Store

    loader = Loader(Store.open(path), seed=0, parameters=PlanParameters(TOKENS_PER_BATCH))
    return memory_of(lambda: map(len, loader.batches()), len(loader))


def memory_data_loader(count: int) -> dict[str, Any]:
    """A DataLoader with four workers over a list of rows, each a list of ids as a tokenizer gives them."""
    from torch.utils.data import DataLoader

    random = np.random.default_rng(1)
    data = [random.integers(0, 30_000, length).tolist() for length in lengths_of(count).tolist()]
    loader = DataLoader(data, batch_size=ROWS_PER_BATCH, shuffle=True, collate_fn=len, num_workers=4)  # type: ignore[arg-type]
    return memory_of(lambda: iter(loader), len(loader))

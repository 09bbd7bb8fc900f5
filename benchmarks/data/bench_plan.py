"""Planning an epoch of ten million rows, seeking in it, opening a store; beside what peers do for the same.

pytest benchmarks/data -o python_files='bench_*.py' --benchmark-json=data.json --benchmark-timer=time.process_time
"""

import resource

import numpy as np
import pytest
import torch

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters, plan_epoch
from penstock.engine.data.store import Store

ROWS = 10_000_000


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("mode", ["pack", "bucket"])
def test_plan(benchmark, ten_million_lengths, mode):
    before = peak_megabytes()
    plan = benchmark.pedantic(
        plan_epoch, (ten_million_lengths, "store", 0, 1, PlanParameters(16_384, 8, mode)), rounds=3, warmup_rounds=0
    )
    benchmark.extra_info.update(rows=ROWS, megabytes=peak_megabytes() - before, **plan.statistics())


def test_numpy_batch_by_size(benchmark, ten_million_lengths):
    """The usual recipe: permute, sort inside windows of 50 batches, cut where the running sum passes the budget."""

    lengths = ten_million_lengths

    def run() -> int:
        order = np.random.default_rng(0).permutation(ROWS)
        window = 50 * 221
        for begin in range(0, ROWS, window):
            part = order[begin : begin + window]
            order[begin : begin + window] = part[np.argsort(lengths[part], kind="stable")]
        return len(np.unique(np.cumsum(lengths[order], dtype=np.int64) // 16_384))

    benchmark.extra_info.update(rows=ROWS, batches=benchmark.pedantic(run, rounds=1))


def test_length_grouped_sampler(benchmark, ten_million_lengths):
    """transformers' sampler, over a tenth of the rows."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = ten_million_lengths[: ROWS // 10].tolist()

    def run() -> int:
        return len(list(LengthGroupedSampler(221, lengths=lengths, generator=torch.Generator())))

    benchmark.extra_info.update(rows=benchmark.pedantic(run, rounds=1))


def test_open(benchmark, store):
    opened = benchmark.pedantic(Store.open, (store.path,), rounds=20, warmup_rounds=1)
    benchmark.extra_info.update(rows=opened.num_examples, shards=len(opened.manifest.shards))


def test_open_load_from_disk(benchmark, hub_dataset):
    import datasets

    folder = str(hub_dataset.cache_files[0]["filename"]).rsplit("/", 1)[0]
    opened = benchmark.pedantic(datasets.load_from_disk, (folder,), rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(rows=len(opened))


def test_seek(benchmark, store):
    """To the middle of a planned epoch and the first batch there."""
    loader = Loader(store, seed=0, parameters=PlanParameters(16_384))
    middle = len(loader) // 2

    def run() -> None:
        loader.seek(0, middle)
        assert next(iter(loader)).index == middle

    benchmark.pedantic(run, rounds=20, warmup_rounds=1)

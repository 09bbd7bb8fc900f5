"""Batches of 16k tokens: the loader, a numpy loop over Arrow views, and DataLoader with padding, in one run.

    pytest benchmarks/data -o python_files='bench_*.py' --benchmark-json=data.json --benchmark-timer=time.process_time

The process's own CPU time is what is compared, for other work on the machine moves the clock's time.
"""

import numpy as np
import torch

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store

PARAMETERS = PlanParameters(tokens_per_batch=16_384)
BATCHES = 1_000


def report(benchmark, tokens: int) -> None:
    benchmark.extra_info.update(tokens=tokens, million_tokens_per_second=tokens / benchmark.stats.stats.min / 1e6)


def through_loader(loader: Loader) -> int:
    loader.seek(1)
    tokens = 0
    for number, batch in enumerate(loader.batches()):
        tokens += batch.num_tokens
        if number == BATCHES - 1:
            break
    return tokens


def test_loader_mmap(benchmark, store):
    torch.set_num_threads(1)
    loader = Loader(store, seed=0, parameters=PARAMETERS)
    loader.plan(1)
    report(benchmark, benchmark.pedantic(through_loader, (loader,), rounds=5, warmup_rounds=1))


def test_loader_pread(benchmark, store):
    torch.set_num_threads(1)
    loader = Loader(Store.open(store.path, reader="pread"), seed=0, parameters=PARAMETERS)
    loader.plan(1)
    report(benchmark, benchmark.pedantic(through_loader, (loader,), rounds=3, warmup_rounds=1))


def test_numpy_loop(benchmark, store):
    torch.set_num_threads(1)
    plan = Loader(store, seed=0, parameters=PARAMETERS).plan(1)
    shards = [store.map_shard(number) for number in range(len(store.manifest.shards))]
    starts = np.cumsum([0, *(len(shard.offsets) - 1 for shard in shards)])

    def run() -> int:
        total = 0
        for number in range(min(BATCHES, plan.num_batches)):
            rows = plan.rows(number)
            at = np.searchsorted(starts, rows, side="right") - 1
            parts = []
            for row, k in zip((rows - starts[at]).tolist(), at.tolist(), strict=True):
                shard = shards[k]
                parts.append(shard.values[shard.offsets[row] : shard.offsets[row + 1]])
            values = torch.from_numpy(np.concatenate(parts, dtype=np.int32, casting="unsafe"))
            bounds = torch.zeros(len(rows) + 1, dtype=torch.int32)
            torch.cumsum(torch.from_numpy(store.lengths[rows]), 0, out=bounds[1:])
            torch.from_numpy(store.labels[rows])
            total += len(values)
        return total

    report(benchmark, benchmark.pedantic(run, rounds=3, warmup_rounds=1))


def test_data_loader_with_padding(benchmark, hub_dataset):
    """As many examples as 16k tokens hold in the mean; workers would only hide their time in other processes."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    backend = Tokenizer(WordLevel({"[PAD]": 0}))
    collate = DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]"))

    def run() -> int:
        loader = DataLoader(hub_dataset, batch_size=221, shuffle=True, collate_fn=collate)
        total = 0
        for number, batch in enumerate(loader):
            total += int(batch["attention_mask"].sum())
            if number == 20:
                break
        return total

    report(benchmark, benchmark.pedantic(run, rounds=2, warmup_rounds=1))

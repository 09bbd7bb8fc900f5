"""Batches of 16k tokens from a store: penstock's loader, and everybody who makes batches of the same rows.

    penstock bench loader
    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/data --rows 10000000 --keep /scratch/bench

The unit is one real token. DataLoader runs with each number of workers; the best one is to be compared. One thread for
torch; penstock's loader has one thread of its own, which makes the batches.
"""

import numpy as np
import pytest
import torch

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store

PARAMETERS = PlanParameters(tokens_per_batch=16_384)
ROWS_PER_BATCH = 221
BATCHES = 1_000


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def through_loader(loader: Loader, batches: int = BATCHES) -> int:
    loader.seek(1)
    tokens = 0
    for number, batch in enumerate(loader.batches()):
        tokens += batch.num_tokens
        if number == batches - 1:
            break
    return tokens


def numpy_loop(store: Store):
    """Arrow's views, row by row, in the batches of our own plan."""
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

    return run


def data_loader(hub_folder: str, workers: int, batches: int):
    """datasets behind a DataLoader that pads, 221 rows a batch: as many as 16k tokens hold in the mean."""
    import datasets
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    data = datasets.load_from_disk(hub_folder)
    backend = Tokenizer(WordLevel({"[PAD]": 0}))
    collate = DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]"))
    loader = DataLoader(
        data,
        batch_size=ROWS_PER_BATCH,
        shuffle=True,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    iterator = iter(loader)

    def run() -> int:
        nonlocal iterator
        total = 0
        for _ in range(batches):
            try:
                batch = next(iterator)
            except StopIteration:
                iterator = iter(loader)
                batch = next(iterator)
            total += int(batch["attention_mask"].sum())
        return total

    return run


def streaming(folder: str, batches: int):
    """MosaicML's StreamingDataset, local and shuffled, its samples laid end to end."""
    from streaming import StreamingDataset

    data = StreamingDataset(local=folder, batch_size=ROWS_PER_BATCH, shuffle=True, num_canonical_nodes=1)
    iterator = iter(data)

    def run() -> int:
        nonlocal iterator
        total = 0
        for _ in range(batches):
            samples = []
            while len(samples) < ROWS_PER_BATCH:
                try:
                    samples.append(next(iterator))
                except StopIteration:
                    iterator = iter(data)
            values = torch.from_numpy(np.concatenate([sample["tokens"] for sample in samples], dtype=np.int32))
            torch.tensor([sample["label"] for sample in samples])
            total += len(values)
        return total

    return run


def test_ragged_batches(compare, with_peers, store, request):
    mapped = Loader(store, seed=0, parameters=PARAMETERS)
    by_pread = Loader(Store.open(store.path, reader="pread"), seed=0, parameters=PARAMETERS)
    for loader in (mapped, by_pread):
        loader.plan(1)
    contestants = {"penstock": lambda: through_loader(mapped), "penstock, pread": lambda: through_loader(by_pread, 100)}
    if with_peers:
        contestants["numpy loop"] = numpy_loop(store)
        hub_folder = request.getfixturevalue("hub_folder")
        for workers in (0, 1, 2):
            batches = min(40, max(10, store.num_examples // 2_500))
            contestants[f"DataLoader, {workers} workers"] = data_loader(hub_folder, workers, batches)
        folder = request.getfixturevalue("streaming_folder")
        if folder is not None:
            contestants["MosaicML streaming"] = streaming(folder, 20)
    compare(contestants, rounds=7, warm=True, unit="a real token", rows=store.num_examples)

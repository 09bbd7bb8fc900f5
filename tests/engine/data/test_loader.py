"""The loader's batches against a plain loop; going on anywhere; independence of ranks; buffers never reused."""

import gc
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from subtested import as_subtests

from penstock._native import Prefetcher, Shards
from penstock.benchmarks.random_store import write_store
from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, StoreError

PARAMETERS = PlanParameters(tokens_per_batch=100, batches_per_step=4)


def make(store, **options) -> Loader:
    return Loader(store, **{"seed": 3, "parameters": PARAMETERS, **options})


def as_lists(batch) -> tuple:
    tokens = batch.tokens
    return tokens.ids.tolist(), tokens.values.tolist(), tokens.cu_seqlens.tolist(), batch.labels.tolist()


def ids(steps) -> list[list[list[int]]]:
    return [[batch.tokens.ids.tolist() for batch in step] for step in steps]


# Every pair of values.
LOOPS = [
    ("pack", "mmap", 1, True),
    ("pack", "pread", 3, False),
    ("bucket", "mmap", 3, False),
    ("bucket", "pread", 1, True),
    ("pack", "mmap", 3, True),
    ("bucket", "pread", 1, False),
]


@as_subtests("mode, reader, threads, shuffle", LOOPS)
def test_equals_a_plain_loop(store, reader, threads, mode, shuffle):
    parameters = PlanParameters(100, 4, mode, 2)
    opened = Store.open(store.path, reader=reader)
    loader = make(opened, parameters=parameters, threads=threads, shuffle=shuffle)
    plan = loader.plan()
    batches = list(loader.batches())
    assert len(batches) == plan.num_batches
    for number, batch in enumerate(batches):
        rows = plan.rows(number)
        assert batch.tokens.ids.tolist() == rows.tolist()
        assert batch.labels.tolist() == store.labels[rows].tolist()
        expected = [store.tokens(int(row)) for row in rows]
        assert batch.tokens.values.tolist() == [int(token) for tokens in expected for token in tokens]
        assert batch.tokens.cu_seqlens.tolist() == [0, *np.cumsum([len(tokens) for tokens in expected]).tolist()]
        assert batch.tokens.max_seqlen == max(map(len, expected))
        assert len(batch) == batch.tokens.batch_size == len(rows)
        assert batch.num_tokens == sum(map(len, expected))
        assert batch.tokens.values.dtype == batch.tokens.cu_seqlens.dtype == torch.int32
        assert batch.labels.dtype == batch.tokens.ids.dtype == torch.int64


def test_steps_know_their_size(store):
    for index, step in enumerate(make(store)):
        assert (step.epoch, step.index, len(step)) == (0, index, 4)
        assert step.num_examples == sum(len(batch) for batch in step)
        assert step.num_tokens == sum(batch.num_tokens for batch in step)


def test_epochs_follow_each_other(store):
    loader = make(store)
    first, second = ids(loader), ids(loader)
    assert loader.epoch == 2
    assert first != second
    again = make(store)
    again.set_epoch(1)
    assert ids(again) == second


def test_the_seed_decides_the_order(store):
    one, same, other = (ids(make(store, seed=seed)) for seed in (3, 3, 4))
    assert one == same != other


def test_leaving_early_repeats_the_epoch(store):
    loader = make(store)
    first = next(iter(loader))
    assert ids(loader) == ids(make(store))
    assert ids([first]) == ids(make(store))[:1]


def test_len_is_of_the_current_epoch(store):
    loader = make(store)
    assert len(loader) == loader.plan().num_steps == len(list(loader))


def test_rows_restrict(store):
    rows = np.array([5, 99, 7, 50, 2, 31])
    loader = make(store, rows=rows)
    assert loader.num_examples == 6
    seen = [row for step in ids(loader) for batch in step for row in batch]
    assert sorted(seen) == sorted(rows.tolist())
    in_order = make(store, rows=rows, shuffle=False, parameters=PlanParameters(10_000))
    assert ids(in_order) == [[rows.tolist()]]
    for wrong, error in (
        (np.arange(len(store)) < 9, TypeError),
        (np.array([0.5]), TypeError),
        ([len(store)], ValueError),
    ):
        with pytest.raises(error, match="rows must be"):
            make(store, rows=wrong)
        with pytest.raises(error, match="rows must be"):
            store.gather(wrong)


def test_evaluation_is_the_same_every_time(store):
    loader = make(store, shuffle=False, parameters=PlanParameters(64))
    assert ids(loader) == ids(loader)
    assert [row for step in ids(loader) for batch in step for row in batch] == list(range(103))


@pytest.mark.parametrize("mode", ["pack", "bucket"])
def test_going_on_after_every_step(store, mode):
    """With 1, 2 and 4 ranks, over the end of an epoch, in a fresh loader: the same stream."""
    parameters = PlanParameters(100, 4, mode, 2)
    straight = make(store, parameters=parameters)
    stream = ids(straight) + ids(straight)
    steps = len(stream)
    for stop in range(steps):
        loader, seen = make(store, parameters=parameters), []
        state = loader.state_dict()
        while len(seen) < stop:
            for step in loader:
                seen += ids([step])
                state = loader.state_dict()
                if len(seen) == stop:
                    break
        state = json.loads(json.dumps(state))
        for world_size in (1, 2, 4):
            resumed = [
                make(store, parameters=parameters, rank=rank, world_size=world_size, start_state=state)
                for rank in range(world_size)
            ]
            epochs = range(resumed[0].epoch, 2)
            per_rank = [[step for _ in epochs for step in ids(loader)] for loader in resumed]
            merged = [
                [parts[batch % world_size][batch // world_size] for batch in range(4)]
                for parts in zip(*per_rank, strict=True)
            ]
            assert seen + merged == stream


def test_going_on_twice(store):
    stream = ids(make(store))
    loader = make(store)
    seen = []
    for stop in (2, 3):
        for step in loader:
            seen += ids([step])
            if len(seen) == stop:
                break
        state = loader.state_dict()
        loader = make(store)
        loader.load_state_dict(state)
    assert seen + ids(loader) == stream


def test_state_counts_what_was_seen(store):
    loader = make(store)
    for _ in loader:
        pass
    assert loader.state_dict() == {
        "version": 1,
        "plan": loader.fingerprint,
        "epoch": 1,
        "step": 0,
        "examples": 103,
        "tokens": store.num_tokens,
    }
    resumed = make(store, start_state=loader.state_dict())
    next(iter(resumed))
    assert resumed.state_dict()["examples"] > 103


def test_set_epoch_keeps_a_resumed_position(store):
    state = {**make(store).state_dict(), "epoch": 1, "step": 2}
    loader = make(store, start_state=state)
    loader.set_epoch(1)
    assert next(iter(loader)).index == 2
    loader.set_epoch(2)
    assert next(iter(loader)).index == 0


@as_subtests(
    "options",
    [
        {"seed": 4},
        {"parameters": PlanParameters(101, 4)},
        {"parameters": PlanParameters(100, 2)},
        {"rows": np.arange(50)},
        {"shuffle": False},
    ],
)
def test_foreign_state_is_refused(store, options):
    state = make(store).state_dict()
    with pytest.raises(RunError, match="belongs to other data or other batches"):
        make(store, start_state=state, **options)


def test_state_of_another_version(store):
    with pytest.raises(RunError, match="version 7"):
        make(store, start_state={"version": 7})


@as_subtests(
    "options, message",
    [
        ({"world_size": 3}, "3 ranks cannot share steps of 4 batches"),
        ({"world_size": 0}, "0 ranks"),
        ({"world_size": 2, "rank": 2}, "rank 2 of 2"),
        ({"threads": 0}, "one thread"),
    ],
)
def test_wrong_numbers(store, options, message):
    with pytest.raises(ConfigError, match=message):
        make(store, **options)


def test_too_few_examples(store):
    with pytest.raises(ConfigError, match=r"3 training examples are too few for data\.batches_per_step=4"):
        next(iter(make(store, rows=np.arange(3))))


def test_batches_are_never_reused(store):
    """`list(loader)` is correct, with threads that run ahead and tensors that die at any time."""
    expected = [as_lists(batch) for batch in make(store).batches()]
    kept = list(make(store, threads=4, ahead=16).batches())
    assert [as_lists(batch) for batch in kept] == expected
    views = [batch.tokens.values[1:3] for batch in make(store, threads=4).batches()]
    gc.collect()
    assert [view.tolist() for view in views] == [values[1:3] for _, values, _, _ in expected]


def test_loader_left_with_batches_under_way(store):
    for _ in range(50):
        iterator = iter(make(store, threads=2, ahead=8))
        next(iterator)
        del iterator
    gc.collect()


def in_a_copy(work: Callable[[], object]) -> int:
    """How a forked copy of this process ended: 0 where `work` returned, 14 where it hung."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        gc.disable()  # of earlier tests' garbage
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_forked_process_lets_go_of_batches_under_way(store, taken):
    """The threads that make them are not there, and would be waited for for ever."""
    steps = [iter(make(store, threads=2, ahead=8))]
    list(itertools.islice(steps[0], taken))
    assert in_a_copy(steps.clear) == 0
    assert next(steps[0]) is not None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_go_on_with_batches_under_way(store):
    steps = iter(make(store, threads=2, ahead=8))
    next(steps)

    def go_on() -> None:
        with pytest.raises(ValueError, match="begun in another process: begin to iterate again"):
            next(steps)
        assert ids(make(store, threads=2)) == ids(make(store, threads=1))

    assert in_a_copy(go_on) == 0


def test_store_outlived_by_its_batches(store):
    iterator = make(Store.open(store.path)).batches()
    gc.collect()
    assert sum(batch.num_tokens for batch in iterator) == store.num_tokens


def test_several_loaders_at_once(store):
    together = zip(make(store), make(store, threads=2), strict=True)
    assert all(ids([a]) == ids([b]) for a, b in together)


def test_to_device(store):
    batch = next(make(store).batches()).to("cpu")
    assert batch.tokens.values.device.type == "cpu"
    meta = batch.to("meta")
    assert meta.labels.device.type == meta.tokens.cu_seqlens.device.type == "meta"


@pytest.mark.gpu
def test_pinned_batches_survive_their_copies(store):
    expected = [as_lists(batch) for batch in make(store, pin_memory=False).batches()]
    loader = make(store, threads=2, ahead=8)
    on_device = []
    for batch in loader.batches():
        assert batch.tokens.values.is_pinned()
        on_device.append(batch.to("cuda", non_blocking=True))
        del batch
    assert [as_lists(batch) for batch in on_device] == expected


@pytest.mark.slow
@as_subtests(
    "lengths",
    [
        [0],
        [1],
        [0] * 300,
        [65_535, 0, 65_536, 1, 65_537],
        [65_536] * 3,
        *([3] * (2**k + d) for k in (6, 9) for d in (-1, 0, 1)),
    ],
)
def test_every_example_once_whatever_the_sizes(tmp_path, lengths):
    """Through a store on the disk, with the greatest ids that two bytes hold."""
    lengths = np.array(lengths, np.int32)
    written = write_store(tmp_path / "store", lengths, vocab_size=1 << 16)
    for reader, mode in (("mmap", "pack"), ("pread", "bucket")):
        opened = Store.open(written.path, reader=reader)
        assert opened.lengths.tolist() == lengths.tolist()
        seen = []
        for batch in make(opened, parameters=PlanParameters(tokens_per_batch=1000, mode=mode)).batches():
            seen += batch.tokens.ids.tolist()
            assert batch.tokens.lengths.tolist() == lengths[batch.tokens.ids.numpy()].tolist()
            assert batch.num_tokens <= 1000 or len(batch) == 1
            for row, tokens in zip(
                batch.tokens.ids.tolist(), batch.tokens.values.split(batch.tokens.lengths.tolist()), strict=True
            ):
                assert np.array_equal(tokens.numpy(), written.tokens(row))
        assert sorted(seen) == list(range(len(lengths)))
    if lengths.sum() > 60_000:
        assert max(int(written.tokens(row).max()) for row in np.flatnonzero(lengths > 1000)) > 65_530


@pytest.mark.slow
def test_memory_of_epochs_is_flat(tmp_path):
    """A gigabyte goes by in batches; what the process holds of its own does not grow."""
    lengths = np.random.default_rng(0).integers(1, 200, 50_000).astype(np.int32)
    loader = make(write_store(tmp_path / "store", lengths), parameters=PlanParameters(16_384), threads=2)

    def own_megabytes() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    held = []
    for _ in range(60):
        for _ in loader.batches():
            pass
        held.append(own_megabytes())
    slope = np.polyfit(np.arange(40), held[20:], 1)[0]
    assert slope * 40 < 4, held


def test_native_arguments_are_checked():
    labels = np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="2 or 4"):
        Shards(8, 10)
    shards = Shards(2, 10)
    with pytest.raises(ValueError, match="another width"):
        shards.add_mapped("a", np.zeros(4, np.uint32), np.array([0, 4]))
    with pytest.raises(RuntimeError, match="cannot be opened"):
        shards.add_file("a", "/no/such/file", 1, 1, 0, 0)
    shards.add_mapped("a", np.arange(4, dtype=np.uint16), np.array([0, 1, 4]))
    out = np.full(4, -1, np.int32)
    bounds = np.zeros(3, np.int32)
    got = np.zeros(2, np.int64)

    def gather(rows, capacity, all_labels=labels) -> None:
        shards.gather(np.array(rows), all_labels, out.ctypes.data, capacity, bounds.ctypes.data, got.ctypes.data)

    gather([1, 0], 4)
    assert out.tolist() == [1, 2, 3, 0]
    with pytest.raises(RuntimeError, match="longer than the index says"):
        gather([1, 0], 3)
    with pytest.raises(RuntimeError, match="row 2 of a store of 2 rows"):
        gather([2], 1)
    with pytest.raises(RuntimeError, match="row -1"):
        gather([-1], 1)
    with pytest.raises(ValueError, match="number of rows"):
        gather([0], 1, np.zeros(3, np.int64))
    with pytest.raises(IndexError):
        Prefetcher(shards, 1).pop()


@as_subtests(
    "error, at",
    itertools.product(
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
        [0, 4, 9],
    ),
)
def test_memory_that_runs_out_is_no_damage_of_the_store(store, monkeypatch, error, at):
    make_tensor, calls = torch.empty, 0

    def empty(*args, **options):
        nonlocal calls
        calls += 1
        if calls > at:
            raise error
        return make_tensor(*args, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(type(error)) as caught:
        list(make(store))
    assert caught.value is error


def test_what_the_reader_threads_meet_is_damage(store, monkeypatch):
    loader = make(store)
    plan = loader.plan()
    monkeypatch.setattr(type(plan), "rows", lambda self, number: np.full(3, store.num_examples + 7))
    with pytest.raises(StoreError, match="penstock verify says more"):
        list(loader)

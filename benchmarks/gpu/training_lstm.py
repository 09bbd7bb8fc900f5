"""Whole training of the four-layer BiLSTM classifier against the plain nn.LSTM script at its best.

Ours is `penstock train` as it is: the loader, mixed precision, clipping, AdamW. The plain script gets its batches
collated and pinned beforehand, for free, in like lengths, packed or padded, in fp16 or bf16.
"""

import itertools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penstock.benchmarks.gpu import backends, floors
from penstock.benchmarks.gpu.cells import survive
from penstock.benchmarks.gpu.context import Context, emit, finished, key, reason
from penstock.benchmarks.random_store import write_store
from penstock.benchmarks.training.plain_lstm import PlainLSTM
from penstock.engine.data.store import Store
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

VOCAB, TOKENS_PER_BATCH = 30_000, 65_536
LAYERS, WIDTH = 4, 256
OPERATIONS = ("lstm", "segment_pool")
_WARM_UP, _FEWEST = 15, 20  # steps of which no time is taken, and that are timed at least
_OVERHEAD = 40.0  # seconds that a training may take beyond its share, for what it compiles and the last steps
_SAME_LOSS = 2e-2  # relative: between backends, of the mean loss over the first ten steps


def run(context: Context) -> None:
    rows, longest = (60, 12) if context.smoke else (300_000, 256)
    lengths = np.random.default_rng(0).integers(min(32, longest // 3), longest + 1, rows).astype(np.int32)
    store = random_store(context.folder / "lstm-store", lengths, 100 if context.smoke else VOCAB)
    size = (2, 8) if context.smoke else (LAYERS, WIDTH)
    flops = floors.lstm_classifier(lengths.tolist(), size[1], size[1], size[0]) / int(lengths.sum())
    settings = [
        "model.kind=lstm",
        *(
            [f"model.num_layers={size[0]}", f"model.hidden_size={size[1]}"]
            if context.smoke
            else ["model.preset=lstm-4-256"]
        ),
        f"model.embedding_size={size[1]}",
        f"data.tokens_per_batch={100 if context.smoke else TOKENS_PER_BATCH}",
    ]
    variants = backends.model_variants(OPERATIONS, context)
    peers = list(itertools.product(("padded", "packed"), ("fp16", "bf16")))
    left = len(variants) + len(peers)
    train_variants(context, store, settings, "lstm-4-256", variants, flops, left)
    for form, half in peers:
        label = f"nn.LSTM {form} {half}"
        if label in context.done:
            continue
        figures: dict[str, Any]
        if context.left() < 2:
            figures = {"why": "not run: the time was up"}
        else:
            seconds = 0.8 * context.share(left - len(variants))
            context.at(key("lstm-4-256", label), seconds + _OVERHEAD)
            try:
                figures = plain(context, store, size, form == "packed", half, seconds)
            except RuntimeError as failure:
                figures = {"why": reason(failure)}
        left -= 1
        report("lstm-4-256", label, figures, flops, context)
        survive(context)


def random_store(folder: Path, lengths: np.ndarray, vocab_size: int) -> Store:
    """`write_store`, or what an earlier try of this part has written to its end."""
    if (folder / "manifest.json").is_file():
        return Store.open(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return write_store(folder, lengths, vocab_size)


def train_variants(
    context: Context,
    store: Store,
    settings: list[str],
    model: str,
    variants: dict[str, tuple[str, ...]],
    flops: float,
    left: int,
) -> None:
    """Trains each variant for its share of the time; all of them must have the same first losses.

    Args:
        flops: of a token, for the floor. left: variants and peers that share the time.

    One whose training goes another way than that of torch's own operations has no figures but a reason.
    """
    known = context.folder / f"{model}-first-loss"  # outlives this process
    first_loss = float(known.read_text()) if known.exists() else None
    for place, (label, names) in enumerate(variants.items()):
        if label in context.done:
            continue
        what = key(model, label)
        figures: dict[str, Any]
        if what in context.off:
            figures = {"why": context.off[what]}
        elif context.left() < 2:
            figures = {"why": "not run: the time was up"}
        else:
            seconds = context.share(left - place)
            context.at(what, seconds + _OVERHEAD)
            try:
                given = [*settings, f"training.cuda_graphs={str(label.endswith(backends.GRAPHS)).lower()}"]
                with backends.trusted(names, context):
                    figures = ours(context, store, given, f"{model} {label}".replace(" ", "-"), seconds)
            except Exception as failure:
                figures = {"why": reason(failure)}
        loss = figures.get("first_loss")
        if first_loss is None and loss is not None:
            first_loss = loss
            known.write_text(str(loss))
        if loss is not None and first_loss is not None and not abs(loss - first_loss) <= _SAME_LOSS * first_loss:
            words = f"first losses {loss:.4f}, with torch's operations {first_loss:.4f}"
            context.switch_off(what, f"wrong result: {words}")
            figures = {"why": context.off[what]}
        report(model, label, figures, flops, context)
        survive(context)


def ours(context: Context, store: Store, settings: list[str], name: str, seconds: float) -> dict[str, Any]:
    """Figures of `train` after its warm-up: first a few steps to learn how many fit, then those."""
    began = time.perf_counter()
    warm_up = 12 if context.smoke else _WARM_UP
    first = _train(context, store, settings, f"{name}-first", warm_up)
    if context.smoke:
        return first
    torch.cuda.reset_peak_memory_stats()
    left = max(1.0, seconds - (time.perf_counter() - began) - 3)
    steps = int(left * first["tokens_per_second"] / (first["tokens"] / warm_up))
    longer = _train(context, store, settings, name, max(_FEWEST, steps))
    return longer | {"first_loss": first["first_loss"], "peak_mib": torch.cuda.max_memory_allocated() / 2**20}


def _train(context: Context, store: Store, settings: list[str], name: str, steps: int) -> dict[str, Any]:
    overrides = [
        *settings,
        f"training.max_steps={steps}",
        "training.log_every_steps=5",
        "training.tensorboard=false",
        "data.validation_fraction=0",
    ]
    folder = context.folder / name
    result = train(load_settings(None, overrides), store, folder, device=context.device, progress="none")
    records = [json.loads(line) for line in Path(folder / "metrics.jsonl").read_text().splitlines()]
    intervals = [record for record in records if record["split"] == "train"]
    settled = intervals[len(intervals) // 3 :]  # allocators and clocks settle first
    return {
        "first_loss": statistics.mean(record["loss"] for record in intervals[:2]),
        "tokens_per_second": statistics.median(record["tokens_per_second"] for record in settled),
        "examples_per_second": statistics.median(record["examples_per_second"] for record in settled),
        "data_wait": statistics.median(record["data_wait"] for record in settled),
        "tokens": result.tokens,
        "steps": result.steps,
        "seconds": result.seconds,
    }


def plain(
    context: Context, store: Store, size: tuple[int, int], packed: bool, half: str, seconds: float
) -> dict[str, Any]:
    """The plain script's step on batches of like length: as fast as nn.LSTM can be fed."""
    device, cuda = context.device, context.device.type == "cuda"
    torch.manual_seed(0)
    model = PlainLSTM(store.vocab_size, 2, embedding=size[1], hidden=size[1], layers=size[0]).to(device)
    if half == "bf16":
        model.lstm.to(torch.bfloat16)  # autocast would make it fp16, whatever it is asked for
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=half == "fp16" and cuda)
    batches = collated(store, 100 if context.smoke else TOKENS_PER_BATCH, 4 if context.smoke else 64, cuda)

    def step(tokens: Tensor, lengths: Tensor, labels: Tensor) -> None:
        tokens, labels = (x.to(device, non_blocking=True) for x in (tokens, labels))
        with torch.autocast(device.type, torch.float16, enabled=half == "fp16" and cuda):
            loss = nn.functional.cross_entropy(model(tokens, lengths, packed).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    for batch in batches[: 2 if context.smoke else _WARM_UP]:
        step(*batch)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    steps = tokens_seen = examples = 0
    start = time.perf_counter()
    while steps < 4 if context.smoke else time.perf_counter() - start < seconds:
        batch = batches[steps % len(batches)]
        step(*batch)
        steps, tokens_seen, examples = steps + 1, tokens_seen + int(batch[1].sum()), examples + len(batch[1])
        if cuda and steps % 10 == 0:
            torch.cuda.synchronize()  # the host may run ahead of the clock otherwise
    if cuda:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    figures = {"tokens_per_second": tokens_seen / elapsed, "examples_per_second": examples / elapsed}
    figures |= {"steps": steps, "seconds": elapsed}
    return figures | ({"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if cuda else {})


def collated(store: Store, tokens_per_batch: int, count: int, pinned: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Batches of rows of like length: tokens (batch, longest), lengths, labels; the epoch's lengths in fair shares."""
    rows_per_batch = max(1, round(tokens_per_batch / float(store.lengths.mean())))
    random = np.random.default_rng(0)
    rows = random.permutation(store.num_examples)[: rows_per_batch * count]
    rows = rows[np.argsort(store.lengths[rows], kind="stable")]
    batches = []
    for start in range(0, len(rows), rows_per_batch):
        chosen = rows[start : start + rows_per_batch]
        tokens = [torch.from_numpy(store.tokens(int(row)).astype(np.int64)) for row in chosen]
        batch = (
            nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            torch.tensor([len(row) for row in tokens]),
            torch.from_numpy(store.labels[chosen].astype(np.int64)),
        )
        batches.append((batch[0].pin_memory(), batch[1], batch[2].pin_memory()) if pinned else batch)
    return [batches[place] for place in random.permutation(len(batches))]


def report(model: str, contestant: str, figures: dict[str, Any], flops: float, context: Context) -> None:
    if "tokens_per_second" in figures:
        figures = figures | {"of_floor": figures["tokens_per_second"] * flops / context.rate("bf16")}
    emit(kind="training", model=model, contestant=contestant, flops_per_token=flops, **figures)
    finished(contestant)
    context.at()

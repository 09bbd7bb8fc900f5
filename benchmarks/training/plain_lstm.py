"""The peer that penstock's BiLSTM is measured against: plain PyTorch, written the way a careful user would.

nn.LSTM over batches of like length, either packed (`pack_padded_sequence`) or padded with masked pooling, AdamW with
warm-up and linear decay, optional bf16 autocast. It reads the tokens of a penstock store through pyarrow alone, so
that both sides see the same examples.

    python benchmarks/training/plain_lstm.py --train STORE --test STORE --rows 20000 --seed 0
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence


@dataclass
class Examples:
    tokens: list[Tensor]
    labels: Tensor


def read_store(path: Path, rows: np.ndarray | None = None) -> Examples:
    manifest = json.loads((path / "manifest.json").read_text())
    tables = [pa.ipc.open_file(pa.memory_map(str(path / shard["name"]))).read_all() for shard in manifest["shards"]]
    table = pa.concat_tables(tables)
    if rows is not None:
        table = table.take(pa.array(rows))
    tokens = [torch.from_numpy(np.asarray(row.values).astype(np.int64)) for row in table["tokens"]]
    return Examples(tokens, torch.from_numpy(table["label"].to_numpy().astype(np.int64)))


class PlainLSTM(nn.Module):
    """Embedding, BiLSTM, max pooling, linear: penstock's `lstm-1-256` in stock modules."""

    def __init__(
        self, vocab_size: int, num_labels: int, embedding: int = 256, hidden: int = 256, layers: int = 1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(
            embedding, hidden, layers, batch_first=True, bidirectional=True, dropout=0.1 if layers > 1 else 0.0
        )
        self.classifier = nn.Linear(2 * hidden, num_labels)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: Tensor, lengths: Tensor, packed: bool) -> Tensor:
        """Lengths on the CPU, tokens (batch, longest) on the model's device; the LSTM computes in its weights' type."""
        x = self.embedding(tokens).to(self.lstm.weight_ih_l0.dtype)
        if packed:
            packed_x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.lstm(packed_x)[0], batch_first=True, total_length=tokens.shape[1])
        else:
            y, _ = self.lstm(x)
        device = tokens.device
        padding = (
            torch.arange(tokens.shape[1], device=device)[None, :] >= lengths.to(device, non_blocking=True)[:, None]
        )
        pooled = y.masked_fill(padding[:, :, None], float("-inf")).amax(1)
        return self.classifier(self.dropout(pooled).to(self.classifier.weight.dtype))


def batches(examples: Examples, batch_size: int, generator: torch.Generator | None) -> list[list[int]]:
    """Batches of like length in random order: a random permutation, sorted inside windows of 50 batches."""
    lengths = [len(tokens) for tokens in examples.tokens]
    if generator is None:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    permutation = torch.randperm(len(lengths), generator=generator).tolist()
    out = []
    for start in range(0, len(permutation), 50 * batch_size):
        window = sorted(permutation[start : start + 50 * batch_size], key=lengths.__getitem__)
        out += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [out[i] for i in torch.randperm(len(out), generator=generator).tolist()]


def collate(examples: Examples, batch: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = [examples.tokens[i] for i in batch]
    lengths = torch.tensor([len(t) for t in tokens])
    return pad_sequence(tokens, batch_first=True), lengths, examples.labels[batch]


@torch.no_grad()
def accuracy(model: PlainLSTM, examples: Examples, batch_size: int, packed: bool) -> float:
    model.eval()
    right = 0
    for batch in batches(examples, batch_size, None):
        tokens, lengths, labels = collate(examples, batch)
        right += int((model(tokens, lengths, packed).argmax(-1) == labels).sum())
    model.train()
    return right / len(examples.labels)


def train(
    model: PlainLSTM,
    examples: Examples,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    packed: bool,
    bf16: bool,
    max_seconds: float = float("inf"),
) -> dict[str, float]:
    """Trains in place; returns seconds, examples/s and real tokens/s, the first of at least two steps left out."""
    generator = torch.Generator().manual_seed(seed)
    epoch_batches = [batches(examples, batch_size, generator) for _ in range(epochs)]
    steps = sum(map(len, epoch_batches))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    )
    count = tokens_seen = 0
    start = began = time.perf_counter()
    for step, batch in enumerate(b for epoch in epoch_batches for b in epoch):
        tokens, lengths, labels = collate(examples, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(tokens, lengths, packed).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == 0:
            start = time.perf_counter()
        else:
            count += len(batch)
            tokens_seen += int(lengths.sum())
        if count and time.perf_counter() - began > max_seconds:
            break
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "examples_per_second": count / seconds, "tokens_per_second": tokens_seen / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="a penstock store")
    parser.add_argument("--test", type=Path, required=True, help="a penstock store prepared --like it")
    parser.add_argument("--rows", type=int, help="use this many random training rows")
    parser.add_argument("--test-rows", type=int, help="use the first this many test rows")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--padded", action="store_true", help="padded with masked pooling instead of packed")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    manifest = json.loads((options.train / "manifest.json").read_text())
    rows = None
    if options.rows is not None:
        rows = np.sort(np.random.default_rng(options.seed).permutation(manifest["num_examples"])[: options.rows])
    examples = read_store(options.train, rows)
    test = read_store(options.test, None if options.test_rows is None else np.arange(options.test_rows))
    model = PlainLSTM(manifest["vocab_size"], len(manifest["label_names"]))
    speed = train(
        model,
        examples,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        packed=not options.padded,
        bf16=options.bf16,
    )
    print(json.dumps({"seed": options.seed, "accuracy": accuracy(model, test, 64, not options.padded), **speed}))


if __name__ == "__main__":
    main()

"""A whole fine-tuning step of an encoder on a CPU: penstock against a hand-written padded loop and the Hugging Face
Trainer, on the length distribution of real texts.

Every contestant trains a model of its own on the same texts, pass after pass, in turn: a host that changes its speed
changes it for all. The texts are those of every n-th batch of a window of 50 batches sorted by length, so that the
padded contestants have batches of like length from the whole distribution. Between the passes the rate of bfloat16
matrix products at the model's own shapes is probed. Prints one JSON document; --out writes it as well.

    python benchmarks/encoder/finetune.py --store STORE
    python benchmarks/encoder/finetune.py --store STORE --dropout 0 --peers sdpa-bf16 trainer-grouped --seconds 300
    python benchmarks/encoder/finetune.py --store STORE --modernbert --peers sdpa-bf16
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store
from penstock.engine.models import EncoderClassifier
from penstock.engine.models.loading import quiet
from penstock.engine.study.settings import packaged_encoder
from penstock.engine.training.distributed import World
from penstock.engine.training.memory import keep_freed_memory
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.step import Stepper

LEARNING_RATE, WEIGHT_DECAY, WINDOW = 5e-5, 0.01, 50
LOOPS = [f"{attention}-{dtype}" for attention in ("sdpa", "eager") for dtype in ("bf16", "fp32")]
TRAINERS = ["trainer-grouped", "trainer-random"]

Pass = Callable[[], float]  # trains once on all the texts and returns the seconds

clock = time.perf_counter


def choose_rows(store: Store, batch_size: int, batches: int) -> list[np.ndarray]:
    """Rows of `batches` batches of like length, evenly spread over a window of WINDOW of them."""
    rows = np.random.default_rng(0).permutation(store.num_examples)[: WINDOW * batch_size]
    rows = rows[np.argsort(store.lengths[rows], kind="stable")]
    places = (np.arange(batches) + 0.5) * WINDOW / batches
    return [rows[int(place) * batch_size : (int(place) + 1) * batch_size] for place in places]


def stock_model(
    encoder: str, attention: str, dropout: float, num_labels: int, modernbert: bool = False
) -> PreTrainedModel:
    """The encoder or, for what it costs, a ModernBERT of its width and vocabulary with random weights."""
    with quiet():
        if modernbert:
            like = AutoConfig.from_pretrained(encoder)
            config = ModernBertConfig(
                vocab_size=like.vocab_size,
                pad_token_id=like.pad_token_id,
                hidden_size=like.hidden_size,
                num_hidden_layers=like.num_hidden_layers + 1,  # every third is global, from the first to the last
                num_attention_heads=like.num_attention_heads,
                intermediate_size=like.hidden_size * 3 // 2,
                attention_dropout=dropout,
                num_labels=num_labels,
            )
            torch.manual_seed(0)
            return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        return AutoModelForSequenceClassification.from_pretrained(
            encoder,
            num_labels=num_labels,
            attn_implementation=attention,
            attention_probs_dropout_prob=dropout,
            dtype=torch.float32,
        )


def penstock(model: PreTrainedModel, store: Store, rows: np.ndarray, tokens_per_batch: int) -> Pass:
    settings = TrainingSettings(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    stepper = Stepper(EncoderClassifier(model), settings, "bf16", World(0, 1, torch.device("cpu")))
    loader = Loader(store, seed=0, parameters=PlanParameters(tokens_per_batch, mode="pack"), rows=rows)
    loader.plan()

    def train() -> float:
        start = clock()
        for step in loader:
            stepper(step.batches, step=1, num_examples=step.num_examples, learning_rate=LEARNING_RATE)
        return clock() - start

    return train


def loop(model: PreTrainedModel, store: Store, batches: list[np.ndarray], bf16: bool) -> Pass:
    """The peer as a careful user writes it: padded to the longest of a batch, fused AdamW, clipping."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    texts = [[torch.from_numpy(store.tokens(row)).long() for row in rows] for rows in batches]
    labels = [torch.from_numpy(store.labels[rows]).long() for rows in batches]
    generator = torch.Generator().manual_seed(0)
    model.train()

    def train() -> float:
        start = clock()
        for i in torch.randperm(len(batches), generator=generator).tolist():
            mask = pad_sequence([torch.ones_like(text) for text in texts[i]], batch_first=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(input_ids=pad_sequence(texts[i], batch_first=True), attention_mask=mask).logits
            nn.functional.cross_entropy(logits.float(), labels[i]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return clock() - start

    return train


class Stopwatch(TrainerCallback):
    """The time from the first step's beginning to the last one's end."""

    began = ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = clock()


def trainer(model: PreTrainedModel, store: Store, rows: np.ndarray, batch_size: int, grouped: bool) -> Pass:
    """The Trainer in bf16 with dynamic padding, its batches grouped by length or drawn at random."""
    texts = [{"input_ids": store.tokens(row).tolist(), "label": int(store.labels[row])} for row in rows]
    watch = Stopwatch()
    arguments = TrainingArguments(
        output_dir="unused",
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        train_sampling_strategy="group_by_length" if grouped else "random",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    runner = Trainer(
        model=model,
        args=arguments,
        train_dataset=texts,
        data_collator=DataCollatorWithPadding(store.tokenizer()),
        callbacks=[watch],
    )

    def train() -> float:
        with quiet():
            runner.train()
        return watch.ended - watch.began

    return train


def flops(config: PreTrainedConfig, lengths: np.ndarray) -> dict[str, float]:
    """What training on these texts executes: matrix products with weights, and those of attention.

    Forward 2 FLOPs a weight and row, backward 4; the last layer's queries and all that follows them are computed for
    first tokens only, and counted so. What backward computes a second time is not counted, and a local layer's pairs of
    tokens as far as its window reaches.
    """
    tokens, texts = int(lengths.sum()), len(lengths)
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    modern = config.model_type == "modernbert"
    rest = 2 * width * width + (3 if modern else 2) * width * inner  # query, output, up (and its gate), down
    weights = tokens * (layers * 2 * width * width + (layers - 1) * rest) + texts * rest
    kinds = config.layer_types if modern else ["full_attention"] * layers
    reach = [None if kind == "full_attention" else config.local_attention for kind in kinds]
    pairs = tokens + sum(int((lengths * lengths.clip(max=keys)).sum()) for keys in reach[:-1])  # of a query and a key
    return {"products": 6.0 * weights, "attention": 12.0 * pairs * width}


def probe(config: PreTrainedConfig, tokens: int) -> Callable[[], float]:
    """The FLOP/s of bfloat16 products of one layer's shapes, forward and both of backward, into kept memory."""
    width, inner = config.hidden_size, config.intermediate_size
    products = []
    for n, k in ((3 * width, width), (width, width), (inner, width), (width, inner)):
        x, weight, grad = (torch.randn(shape).bfloat16() for shape in ((tokens, k), (n, k), (tokens, n)))
        for a, b in ((x, weight.t()), (grad, weight), (grad.t(), x)):
            products.append((a, b, torch.empty(a.shape[0], b.shape[1], dtype=torch.bfloat16)))
    work = sum(2.0 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in products)

    def measure() -> float:
        times = []
        for _ in range(3):
            start = clock()
            for a, b, out in products:
                torch.mm(a, b, out=out)
            times.append(clock() - start)
        return work / min(times)

    return measure


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def rounds(contestants: dict[str, Pass], rate: Callable[[], float], seconds: float) -> Iterator[dict[str, float]]:
    """Each contestant's seconds, the matmul rate and the cores in use, round after round.

    The first round warms up and is left out. Fewer cores than threads mean that the machine had other things to do.
    """
    began = clock()
    for number in range(1000):
        started, wall, used = clock(), time.perf_counter(), time.process_time()
        results = {}
        for name, train in contestants.items():
            results[name] = train()
            results["rate"] = max(results.get("rate", 0.0), rate())
        results["cores"] = (time.process_time() - used) / (time.perf_counter() - wall)
        if number:
            yield results
        if number and 2 * clock() - started - began > seconds:
            return


def commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return run.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a penstock store with the encoder's tokenizer")
    parser.add_argument("--encoder", default=None, help="name or path; the packaged MiniLM by default")
    parser.add_argument("--modernbert", action="store_true", help="a ModernBERT of the encoder's size instead")
    parser.add_argument("--dropout", type=float, default=0.1, help="of attention weights")
    parser.add_argument("--peers", nargs="*", default=[*LOOPS, *TRAINERS], choices=[*LOOPS, *TRAINERS])
    parser.add_argument("--batch-size", type=int, default=32, help="texts in a padded batch")
    parser.add_argument("--batches", type=int, default=16, help="padded batches in a pass")
    parser.add_argument("--tokens-per-batch", type=int, default=4096, help="of penstock's batches")
    parser.add_argument("--seconds", type=float, default=300, help="about how long to measure")
    parser.add_argument("--default-malloc", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of CPU, one thread: for a loaded machine")
    options = parser.parse_args()

    global clock
    if options.cpu_time:
        clock = time.process_time
        torch.set_num_threads(1)
    if not options.default_malloc:
        keep_freed_memory()
    torch.manual_seed(0)
    encoder = options.encoder or packaged_encoder()
    store = Store.open(options.store)
    batches = choose_rows(store, options.batch_size, options.batches)
    rows = np.concatenate(batches)
    lengths = store.lengths[rows].astype(np.int64)

    def model(attention: str) -> PreTrainedModel:
        return stock_model(encoder, attention, options.dropout, store.num_labels, options.modernbert)

    contestants = {"penstock": penstock(model("eager"), store, np.sort(rows), options.tokens_per_batch)}
    for name in options.peers:
        attention, _, kind = name.partition("-")
        if attention == "trainer":
            contestants[name] = trainer(model("sdpa"), store, rows, options.batch_size, grouped=kind == "grouped")
        else:
            contestants[name] = loop(model(attention), store, batches, bf16=kind == "bf16")

    config = model("eager").config
    work = flops(config, lengths)
    results = list(rounds(contestants, probe(config, options.tokens_per_batch), options.seconds))
    tokens = int(lengths.sum())
    shares = {
        "share_of_matmul_rate": [work["products"] / r["penstock"] / r["rate"] for r in results],
        "with_attention": [sum(work.values()) / r["penstock"] / r["rate"] for r in results],
    }
    document = {
        "commit": commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": clock.__name__,
        "store": options.store.name,
        "model_type": config.model_type,
        "attention_dropout": options.dropout,
        "texts": len(rows),
        "tokens": tokens,
        "mean_length": tokens / len(rows),
        "size_biased_length": float((lengths**2).sum() / tokens),
        "padding": 1 - tokens / sum(len(b) * int(store.lengths[b].max()) for b in batches),
        "rounds": len(results),
        "tokens_per_second": {name: quartiles([tokens / r[name] for r in results]) for name in contestants},
        "ratio": {name: quartiles([r[name] / r["penstock"] for r in results]) for name in options.peers},
        "cores": quartiles([r["cores"] for r in results]),
        "matmul_gflops": quartiles([r["rate"] / 1e9 for r in results]),
        **{name: quartiles(values) for name, values in shares.items()},
    }
    text = json.dumps(document, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Texts to labels on a CPU, from raw text: penstock's `predict` against what people would use instead.

A unit is all TEXTS of a case, generated reviews: tokenized, classified, labels in the order of the texts. The runs are
trained for a few steps, since answers cost the same whatever they are. Up to WAITED_FOR texts are what somebody waits
for: CALLS units in a row, with their 99th percentile.

- `penstock int8` is the same run with its products in int8.
- `pipeline` is transformers' at its best: stock model, batches of texts sorted by length, in the case's dtype.
- `onnxruntime` has `penstock export onnx`'s file and the tokenizers library, batches of texts sorted by length, in
  float32; `onnxruntime int8` the same file with onnxruntime's dynamic quantization.

Peers choose their batch size among BATCHES by a first pass over a part of the texts each.

    penstock bench predict
    penstock bench predict --shape 20000 --threads 1
"""

import atexit
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.benchmarks.suite import OURS, Case, Contestant, Options, shapes_of
from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.errors import ConfigError
from penstock.engine.models.loading import quiet
from penstock.engine.study.settings import packaged_encoder
from penstock.engine.training.precision import resolve_precision
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun

MODELS = {"lstm-1-256": ["model.preset=lstm-1-256"], "MiniLM": ["model.kind=encoder"]}
DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
STEPS = 3  # of training
BATCHES = (8, 32, 128)
TRIED = 256  # texts of the pass that chooses among them
PAUSE = 0.5  # seconds: onnxruntime's idle threads spin
WAITED_FOR, CALLS = 32, 20

Classify = Callable[[Sequence[str], int], list[str]]  # texts, and how many to a batch -> labels


def cases(options: Options) -> Iterator[Case]:
    for model in MODELS:
        for shape in shapes_of("TEXTS", [(4000,), (1,), (WAITED_FOR,)], [(300,), (1,)], options):
            calls = CALLS if shape["TEXTS"] <= WAITED_FOR else 1
            for dtype in options.dtypes or (_native(),):
                yield Case(model, shape, dtype, partial(_make, model, shape["TEXTS"], dtype), pause=PAUSE, calls=calls)


def _native() -> str:
    """What `predict` computes in on this processor: bfloat16 without instructions for it takes everybody minutes."""
    precision = resolve_precision("auto", torch.device("cpu"))
    return next(dtype for dtype, name in DTYPES.items() if name == precision)


@cache
def _run(model: str) -> Path:
    """A run on generated reviews, in a folder that stays until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-predict-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = prepare("synthetic:reviews?n=500&seed=0", folder / "store", tokenizer=packaged_encoder(), progress=False)
    encoder = [f"model.encoder={packaged_encoder()}"] if model == "MiniLM" else []
    fixed = [f"training.max_steps={STEPS}", "training.tensorboard=false"]
    train(load_settings(None, [*MODELS[model], *encoder, *fixed]), store, folder / "run", progress="none", device="cpu")
    return folder / "run"


def texts_of(count: int) -> list[str]:
    return [text for text, _ in generate_reviews(count, seed=7)]


def _make(model: str, count: int, dtype: str, peers: bool) -> dict[str, Contestant | str]:
    texts = texts_of(count)
    contestants: dict[str, Contestant | str] = {}
    for name, kept in ((OURS, None), (f"{OURS} int8", torch.int8)):
        run = TrainedRun.open(_run(model), "cpu")
        run.precision = DTYPES[dtype]
        run.prepare(kept)
        contestants[name] = lambda run=run: run.predict(texts)["label"].to_pylist()  # type: ignore[misc]
    if not peers:
        return contestants
    if model == "MiniLM":  # a pipeline of the LSTM would be ours
        contestants["pipeline"] = _at_its_best(_pipeline(run, dtype), texts)
    for name, quantized in (("onnxruntime", False), ("onnxruntime int8", True)):
        try:
            contestants[name] = _at_its_best(_onnx(run, quantized), texts)
        except (ImportError, ConfigError) as error:
            contestants[name] = f"not installed: {error}"
    return contestants


def _at_its_best(classify: Classify, texts: list[str]) -> Contestant:
    """With the batch size that is fastest, found at the first call."""
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    ordered = [texts[place] for place in by_length]
    chosen: list[int] = []

    def all_texts() -> list[str]:
        if not chosen:
            some = ordered[:: max(1, len(ordered) // TRIED)]
            classify(some[:8], 8)
            chosen.append(min(BATCHES, key=lambda size: _seconds(classify, some, size)))
        labels = [""] * len(texts)
        for place, label in zip(by_length, classify(ordered, chosen[0]), strict=True):
            labels[place] = label
        return labels

    return all_texts


def _seconds(classify: Classify, texts: Sequence[str], size: int) -> float:
    start = time.perf_counter()
    classify(texts, size)
    return time.perf_counter() - start


def _pipeline(run: TrainedRun, dtype: str) -> Classify:
    from transformers import pipeline

    with quiet():
        made: Any = pipeline("text-classification", str(run.path / "best"), dtype=getattr(torch, dtype), device="cpu")

    def classify(texts: Sequence[str], size: int) -> list[str]:
        return [each["label"] for each in made(list(texts), batch_size=size, truncation=True)]

    return classify


def _onnx(run: TrainedRun, quantized: bool) -> Classify:
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from tokenizers import Tokenizer

    from penstock.engine.export.encoder import unheard
    from penstock.engine.export.onnx_file import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(run.path, file)
        facts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        if quantized:
            from onnxruntime.quantization import quantize_dynamic

            with unheard():
                quantize_dynamic(file, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    tokenizer, labels = Tokenizer.from_str(facts["tokenizer.json"]), json.loads(facts["labels"])

    def classify(texts: Sequence[str], size: int) -> list[str]:
        found: list[str] = []
        for begin in range(0, len(texts), size):
            rows = tokenizer.encode_batch_fast(texts[begin : begin + size])
            ids = np.array([row.ids for row in rows], np.int64)
            mask = np.array([row.attention_mask for row in rows], np.int64)
            (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
            found += [labels[number] for number in logits.argmax(1)]
        return found

    return classify

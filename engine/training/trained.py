"""A finished run, put to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from penstock.engine.data.sources import Source
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import TextTokenizer, load_saved_tokenizer
from penstock.engine.errors import RunError, StoreError
from penstock.engine.models import load_model
from penstock.engine.training.evaluate import evaluate, evaluate_batches
from penstock.engine.training.metrics import Metrics
from penstock.engine.training.predictions import predict_table
from penstock.engine.training.run_directory import read_record
from penstock.engine.training.settings import load_saved_settings
from penstock.engine.training.texts import text_batches


def describe_data(store: Store) -> dict[str, Any]:
    """What run.json keeps of the training data, so that new data can be read the same way."""
    manifest = store.manifest
    return {
        "store": str(store.path.resolve()),
        "tokenizer": manifest.tokenizer.fingerprint,
        "label_names": store.label_names,
        "max_length": manifest.max_length,
        "truncation": manifest.truncation,
        "text": manifest.sources[0].text,
        "label": manifest.sources[0].label,
    }


def check_fits(store: Store, data: dict[str, Any]) -> None:
    """Raises StoreError unless the store has the training data's tokenizer and labels."""
    for what, here, there in (
        ("tokenizer", store.manifest.tokenizer.fingerprint, data["tokenizer"]),
        ("labels", store.label_names, data["label_names"]),
    ):
        if here != there:
            raise StoreError(
                f"{store.path} was prepared with other {what} than the training data: "
                f"prepare it with --like {data['store']}"
            )


def is_store(path: str) -> bool:
    """A folder is a store, or meant to be one."""
    return Path(path).is_dir()


@dataclass
class TrainedRun:
    """A run's best model on its device, and how to read data for it."""

    path: Path
    model: torch.nn.Module
    data: dict[str, Any]
    tokens_per_batch: int
    precision: str

    @classmethod
    def open(cls, path: Path | str, device: torch.device | str | None = None) -> "TrainedRun":
        """Opens a complete run, or the best model so far of one that was stopped.

        Raises:
            RunError: there is no run, or it has no model yet.
        """
        path = Path(path)
        record = read_record(path)
        if not (path / "best").exists():
            raise RunError(f"{path} has no model yet: train it first")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_model(path / "best").to(device).eval()  # type: ignore[arg-type]
        settings = load_saved_settings(path / "config.yaml")
        precision = settings.training.precision
        # trained on a GPU, used on a CPU
        precision = "auto" if (precision, device.type) == ("fp16", "cpu") else precision
        return cls(path, model, record["data"], settings.data.tokens, precision)

    @property
    def text(self) -> str:
        return self.data["text"]

    @property
    def label(self) -> str:
        return self.data["label"]

    def evaluate_store(self, path: str) -> Metrics:
        """
        Raises:
            StoreError: no store, or one with other labels or another tokenizer.
        """
        store = Store.open(path)
        check_fits(store, self.data)
        return evaluate(self.model, store, tokens_per_batch=self.tokens_per_batch, precision=self.precision)

    def evaluate_source(self, source: Source) -> Metrics:
        """
        Raises:
            SourceError: a row cannot be used, or has a label that was not there in training.
        """
        batches = text_batches(source, self._tokenizer(), self.data["label_names"], self.tokens_per_batch)
        return evaluate_batches(self.model, batches, len(self.data["label_names"]), self.precision)

    def predict(self, source: Source) -> pa.Table:
        """See `predict_table`."""
        batches = text_batches(source, self._tokenizer(), self.data["label_names"], self.tokens_per_batch)
        return predict_table(self.model, batches, self.data["label_names"], self.precision)

    def _tokenizer(self) -> TextTokenizer:
        tokenizer = load_saved_tokenizer(self.path / "best")
        return TextTokenizer(tokenizer, self.data["max_length"], self.data["truncation"])

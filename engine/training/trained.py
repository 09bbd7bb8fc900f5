"""A finished run, put to use."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from penstock.engine.data.loader import Batch
from penstock.engine.data.pair_tokenizing import text_tokenizer
from penstock.engine.data.sources import Source, open_source
from penstock.engine.data.sources.base import NoColumn
from penstock.engine.data.sources.memory import MemorySource
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import TextTokenizer, load_saved_tokenizer
from penstock.engine.data.verify import check_files
from penstock.engine.errors import RunError, SourceError
from penstock.engine.models import load_model
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import class_probabilities, evaluate_fully, run, store_batches
from penstock.engine.training.evaluation import Evaluation
from penstock.engine.training.int8 import Int8Check, answer_in_int8
from penstock.engine.training.multi_label import thresholds_of
from penstock.engine.training.multi_label_evaluation import MultiLabelEvaluation
from penstock.engine.training.precision import autocast, resolve_precision
from penstock.engine.training.predictions import Columns, ListColumns, Predicted, common_schema, place_rows, table_of
from penstock.engine.training.run_record import as_trained, check_labels, check_texts, read_trained_record
from penstock.engine.training.settings import load_saved_settings
from penstock.engine.training.texts import (
    BadRows,
    fail_on_bad_rows,
    labelled_batches,
    list_labelled_batches,
    windows,
)

LEAST_TOKENS = 2048  # of a batch to predict: with fewer a short text's share of Python shows


@dataclass
class TrainedRun:
    """A run's best model on its device, and how to read data for it.

    Example:
        >>> from penstock.engine import TrainedRun
        >>> TrainedRun.open("run").predict(["a lovely film", "the dull plot"]).num_rows
        2
    """

    path: Path
    model: torch.nn.Module
    data: dict[str, Any]
    tokens_per_batch: int
    precision: str
    _tokenizer: TextTokenizer | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str, device: torch.device | str | None = None) -> "TrainedRun":
        """Opens a complete run, or the best model so far of one that was stopped.

        Raises:
            RunError: there is no run, or it has no model yet.
        """
        path = Path(path)
        record = read_trained_record(path)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_model(path / "best").to(device).eval()  # type: ignore[arg-type]
        labels: Any = model.config
        if [str(labels.id2label[number]) for number in sorted(labels.id2label)] != record["data"]["label_names"]:
            raise RunError(f"{path / 'run.json'} has other labels than the model: put it back from a copy")
        settings = load_saved_settings(path / "config.yaml")
        return cls(path, model, record["data"], settings.data.tokens, precision_of_run(path, device))

    def prepare(self, dtype: torch.dtype | None = None) -> None:
        """Keeps the weights of an LSTM or an encoder packed between calls; `dtype` as in their `prepare_inference`.

        Raises:
            AttributeError: the model is neither. ValueError: its weights cannot be packed here.
        """
        model: Any = self.model
        with autocast(resolve_precision(self.precision, model.device), model.device):
            model.prepare_inference(dtype)

    def answer_in_int8(self) -> Int8Check:
        """Answers with the LSTM or the encoder in int8 from now on, unless more than 0.2 points of accuracy are
        lost on the run's validation rows, on which both are measured here.

        Raises:
            ConfigError: the run's model is neither, its weights cannot be packed here, or it has no validation rows.
            StoreError: the store with the validation rows is not there, damaged, or another by now.
        """
        return answer_in_int8(self)

    @property
    def text(self) -> str:
        return self.data["text"]

    @property
    def label(self) -> str:
        return self.data["label"]

    @property
    def label_names(self) -> list[str]:
        return self.data["label_names"]

    @property
    def multi_label(self) -> bool:
        """Whether it gives each text a list of labels."""
        return self.data.get("multi_label", False)

    @property
    def thresholds(self) -> np.ndarray:
        """float64 (num_labels,): of such a run, the probability from which a label is given."""
        return thresholds_of(self.model.config, len(self.label_names))

    def evaluate_store(
        self, store: Store | str, advance: Callable[[int], None] = lambda rows: None
    ) -> Evaluation | MultiLabelEvaluation:
        """
        Args:
            advance: told of rows as they are done.

        Raises:
            StoreError: no store, or one with other labels or another tokenizer.
        """
        store = store if isinstance(store, Store) else Store.open(store)
        check_files(store)
        store = as_trained(store, self.data)
        alone = World.alone(self.model)
        batches = store_batches(store, None, self.tokens_per_batch, alone)
        return evaluate_fully(self.model, _counted(batches, advance), self.label_names, self.precision).result()

    def evaluate_source(
        self,
        source: Source | Sequence[Source],
        on_bad: BadRows = fail_on_bad_rows,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> Evaluation | MultiLabelEvaluation:
        """
        Args:
            on_bad: called with rows that cannot be used, or have a label that was not there in training; they count as
                bad if it returns.
            advance: told of rows as they are done.

        Raises:
            SourceError: there is no usable row, `on_bad` raised it, as it does by default, or the rows have lists of
                labels where those of the training data had one, or the other way round.
        """
        sources = [source] if isinstance(source, Source) else source
        for each in sources:
            check_labels(each, self.data)
        check_texts(sources, self.data)
        bad_rows = 0

        def note(of: Source, bad: list) -> None:
            nonlocal bad_rows
            on_bad(of, bad)
            bad_rows += len(bad)

        read = windows(sources, self.tokenizer())
        of_kind = list_labelled_batches if self.multi_label else labelled_batches
        batches = of_kind(read, self.label_names, self.tokens_per_batch, note)
        counter = evaluate_fully(self.model, _counted(batches, advance), self.label_names, self.precision)
        if counter.is_empty:
            named = ", ".join(each.name for each in sources)
            raise SourceError(f"{named}: empty: no {'usable ' if bad_rows else ''}row in it")
        return counter.result(bad_rows)

    def predict(
        self,
        texts: Iterable[str | None] | Iterable[tuple[str, str] | None] | Source,
        *,
        keep: Sequence[str] | None = None,
        top_k: int | None = None,
        probabilities: bool = False,
    ) -> pa.Table:
        """Classifies texts.

        >>> TrainedRun.open("run").predict(["a lovely film"])["label"].to_pylist()
        ['good']

        Args:
            texts: strings, or pairs of them for a run that was trained on pairs, None or NaN where one is missing; or
                a source opened with `open_source`, an Arrow table or a `datasets.Dataset`.
            keep: of a source: the columns to carry along; all by default.
            top_k, probabilities: see `Columns` and `ListColumns`.

        Returns:
            A row for each text, in their order: the source's columns, `label` (string) and `probability` (float32);
            both are null where a text is null or cannot be used. Of a run for lists of labels both are lists, empty
            where no label's probability reaches its threshold.

        Raises:
            TypeError: there is something else among the texts, or pairs for a run trained on single ones, or the other
                way round. SourceError: the same of a source.
        """
        source = self._source_of(texts)
        check_texts([source], self.data)
        source.carry(() if isinstance(source, MemorySource) and source is not texts else keep)
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be 1 at least, got {top_k}")
        schema = common_schema([source])
        columns: Columns
        if self.multi_label:
            columns = ListColumns(
                schema.names, self.label_names, self.thresholds, top_k=top_k, probabilities=probabilities
            )
        else:
            columns = Columns(schema.names, self.label_names, top_k=top_k or 1, probabilities=probabilities)
        return table_of(self.predict_parts([source]), columns, schema)

    def predict_parts(self, sources: Iterable[Source]) -> Iterator[Predicted]:
        """Classifies sources part by part, in the order of their rows and in bounded memory.

        Args:
            sources: that carry columns (`Source.carry`).
        """
        for window in windows(sources, self.tokenizer()):
            rows = window.rows
            scores = np.full((len(rows.texts) + len(rows.bad), len(self.label_names)), np.nan, np.float32)
            places = place_rows(rows.positions, rows.bad)
            tokens = max(self.tokens_per_batch, LEAST_TOKENS)
            for batch, logits in run(self.model, window.batches(tokens), self.precision):
                assert batch.tokens.ids is not None
                scores[places[batch.tokens.ids.cpu().numpy()]] = class_probabilities(self.model, logits).cpu().numpy()
            assert rows.carried is not None
            yield Predicted(window.source, rows.carried, scores, rows.bad)

    @property
    def is_pair(self) -> bool:
        """Whether the run was trained on pairs of texts."""
        return self.data.get("is_pair", False)

    def _source_of(self, texts: Any) -> Source:
        """The texts as a source. Raises TypeError: they are none, a single one, or its items are something else."""
        if isinstance(texts, Source):
            return texts
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be several, as in [text]; got a single one")
        is_data_set = hasattr(texts, "features") and hasattr(texts, "select_columns")
        if isinstance(texts, pa.Table | pa.RecordBatch) or is_data_set:
            try:
                return open_source(texts, text=self.text, need_label=False)
            except NoColumn:
                return open_source(texts, need_label=False)  # the usual ones
        if isinstance(texts, pa.Array | pa.ChunkedArray):
            texts = texts.to_pylist()
        # the items of a mapping are its keys, those of a pandas frame its columns' names, and a set has no order
        if isinstance(texts, Mapping | Set) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
            raise TypeError(f"texts must be a list of strings, got {type(texts).__name__}: give its column of texts")
        column: Any = texts
        if hasattr(column, "isna"):  # of pandas, which has several values for a missing one
            texts = [None if missing else text for text, missing in zip(column, column.isna(), strict=True)]
        return self._in_memory([None if isinstance(text, float) and math.isnan(text) else text for text in texts])

    def _in_memory(self, texts: list[Any]) -> MemorySource:
        expected = "pairs of texts, as the run was trained on" if self.is_pair else "texts"
        for place, text in enumerate(texts):
            parts = text if self.is_pair and isinstance(text, tuple | list) else (text,)
            fits = text is None or len(parts) == (2 if self.is_pair else 1)
            if not fits or not all(part is None or isinstance(part, str) for part in parts):
                raise TypeError(f"expected {expected}, got {text!r:.60} at place {place}")
        return MemorySource(texts, name="texts", is_pair=self.is_pair)

    def tokenizer(self) -> TextTokenizer:
        """What turns texts into the ids that the model reads, cut as in training; read from the disk once."""
        if self._tokenizer is None:
            tokenizer = load_saved_tokenizer(self.path / "best")
            self._tokenizer = text_tokenizer(tokenizer, self.data["max_length"], self.data["truncation"], self.is_pair)
        return self._tokenizer


def precision_of_run(path: Path, device: torch.device) -> str:
    """What a run's model computes in on a device: as in training, "auto" where that is not known or cannot be had.

    Raises:
        RunError, ConfigError: its settings cannot be read.
    """
    precision = load_saved_settings(path / "config.yaml").training.precision
    if precision == "auto":
        precision = read_trained_record(path).get("precision", precision)
    # trained on a GPU, used on a CPU
    return "auto" if (precision, device.type) == ("fp16", "cpu") else precision


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(len(batch))

"""Answers of an LSTM or an encoder in int8, if they cost next to no accuracy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from penstock.engine.data.store import Store
from penstock.engine.data.verify import check_files
from penstock.engine.errors import ConfigError, StoreError
from penstock.engine.models.encoder import EncoderClassifier
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.training.evaluate import evaluate
from penstock.engine.training.multi_label import MultiLabelMetrics
from penstock.engine.training.run_data import digest_of, validation_rows_of
from penstock.engine.training.run_record import as_trained, read_trained_record

if TYPE_CHECKING:
    from penstock.engine.training.trained import TrainedRun

LARGEST_LOSS = 0.002  # 0.2 points


@dataclass(frozen=True)
class Int8Check:
    """What int8 costs on a run's validation rows.

    Attributes:
        rows: how many there are.
        before, after: without int8 and with it.
        measure: of what: accuracy, for lists of labels micro-F1, as few lists are right as a whole.
    """

    rows: int
    before: float
    after: float
    measure: str = "accuracy"

    @property
    def kept(self) -> bool:
        """Whether the run now answers in int8."""
        return self.before - self.after <= LARGEST_LOSS + 1e-9

    def summary(self) -> str:
        found = (
            f"int8: {self.measure} {self.after:.2%} on the {self.rows:,} validation rows, {self.before:.2%} without it"
        )
        return found if self.kept else f"{found}: more than 0.2 points lost, so these answers are without it"


def answer_in_int8(trained: "TrainedRun") -> Int8Check:
    """Prepares a run's model to answer in int8; it stays as it was where that costs more than `LARGEST_LOSS`.

    Raises:
        ConfigError: the run's model is neither an LSTM nor an encoder, its weights cannot be packed here, or it has no
            validation rows.
        StoreError: the store with the validation rows is not there, damaged, or another by now.
    """
    model, (store, rows) = trained.model, _validation_data(trained)
    if not isinstance(model, LSTMClassifier | EncoderClassifier):
        raise ConfigError(
            f"int8 is for LSTMs and encoders, and {trained.path} has a model of another kind: leave --int8 out"
        )

    def measured() -> float:
        tokens, precision = trained.tokens_per_batch, trained.precision
        found = evaluate(model, store, rows=rows, tokens_per_batch=tokens, precision=precision)
        return found.micro_f1 if isinstance(found, MultiLabelMetrics) else found.accuracy

    before, measure = measured(), "micro-F1" if store.multi_label else "accuracy"
    try:
        trained.prepare(torch.int8)
    except ValueError as error:
        raise ConfigError(f"{trained.path} cannot answer in int8 here: {error}; leave --int8 out") from None
    check = Int8Check(len(rows), before, measured(), measure)
    if not check.kept:
        trained.prepare()
    return check


def _validation_data(trained: "TrainedRun") -> tuple[Store, np.ndarray]:
    """The training store as the run reads it, and int64: its validation rows, of a student those with true labels."""
    record = read_trained_record(trained.path)
    identity, data, taught = record["identity"], record["data"], record["data"].get("distillation")
    what = f"what int8 costs is measured on the validation rows of {trained.path}"
    if taught and data["store"] not in (taught["labelled"], taught["unlabelled"]):
        raise ConfigError(f"{what}, whose labels are its teachers' own: leave --int8 out")
    try:
        store = Store.open(data["store"])
        check_files(store)
    except StoreError as error:
        again = f"{'distil' if taught else 'train'} --out {trained.path}"
        again += " --teacher RUN --unlabelled STORE" if taught else ""
        again += " --train STORE" if not taught or taught["labelled"] else ""
        again += " --eval STORE" if identity.get("test data") is not None else ""
        raise StoreError(
            f"{what}: {error}; leave --int8 out or, if the store is elsewhere, tell the run: penstock {again}"
        ) from None
    rows = validation_rows_of(trained.path, store)
    # a student's rows are numbered through all its stores, that with true labels first
    there = identity.get("stores", identity["training data"]).partition(" + ")[0]
    if (there, identity["validation rows"]) != (store.fingerprint, digest_of(rows)):
        raise StoreError(f"{what}, which are no longer to be found in {store.path}: leave --int8 out")
    rows = rows[rows < store.num_examples]
    if not len(rows):
        raise ConfigError(f"{what}, and it has none: leave --int8 out")
    return as_trained(store, data), rows

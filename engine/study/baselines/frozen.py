"""`frozen`: the pretrained encoder as it is, the mean over each text's tokens, logistic regression on top.

The mean rather than the first token: what sentence encoders are trained to give; of a masked language model, [CLS]
means nothing before it is fine-tuned.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError
from penstock.engine.setting import setting
from penstock.engine.study.baselines.encoding import EncodedTexts
from penstock.engine.study.baselines.fitting import FitTask, Fitted, read_chunks
from penstock.engine.study.baselines.logistic import Logistic, choose_c, fit_logistic, settled_notes

VERSION = 1
REQUIRES = ("sklearn.linear_model", "threadpoolctl", "penstock.engine.models.encoder")
_GRID = tuple(4.0**power for power in range(-8, 5))  # of C: hundreds of features of variance 1
_BATCH_TOKENS = 8_192
_SORTED_TOKENS = 1 << 18  # read at a time, and sorted by length into batches


@dataclass(frozen=True)
class Options:
    C: float | None = setting(None, "inverse strength of the L2 penalty; null: chosen by validation", minimum=1e-9)
    refit: bool = setting(True, "train once more with the chosen C on all rows, those of the validation split too")


@dataclass
class Frozen(Fitted):
    """
    Attributes:
        encoder: on its device.
        mean, scale: float32 (width,), of the training rows' vectors. model: from standardised vectors to classes.
        cache: the study's folder of encoded texts; None for none. fingerprint: of the encoder.
    """

    encoder: "Encoder"
    mean: np.ndarray
    scale: np.ndarray
    model: Logistic
    cache: Path | None = None
    fingerprint: str = field(default="", kw_only=True)

    @property
    def parameters(self) -> int:
        return self.encoder.parameters + self.model.parameters + self.mean.size + self.scale.size

    @property
    def embedding_parameters(self) -> int:
        return self.encoder.embedding_parameters

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        self.encoder.save(folder)
        own = {"mean": self.mean, "scale": self.scale, "weights": self.model.weights}
        others = {"intercepts": self.model.intercepts, "classes": self.model.classes}
        save_file(own | others, folder / "head.safetensors")

    def probabilities(self, values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        return self._of_vectors(self.encoder.encode(values, bounds))

    def predict(self, store: Store, rows: np.ndarray) -> Any:
        texts = self.encoder.texts(store, self.cache, self.fingerprint)
        step = 1 << 14
        for part in (rows[begin : begin + step] for begin in range(0, len(rows), step)):
            yield part, self._of_vectors(texts.of(part).vectors)

    def _of_vectors(self, vectors: np.ndarray) -> np.ndarray:
        return self.model.probabilities((vectors.astype(np.float16).astype(np.float32) - self.mean) / self.scale)


class Encoder:
    """The encoder without a head: the mean of a text's last hidden states."""

    def __init__(self, name: str) -> None:
        import torch

        from penstock.engine.models.architectures import parent_of_layers
        from penstock.engine.models.encoder import EncoderClassifier
        from penstock.engine.training.precision import resolve_precision

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = resolve_precision("auto", self.device)
        # the pooling of the stock ModernBERT's, which every architecture's bridge knows
        self.model: EncoderClassifier = EncoderClassifier.from_pretrained(name, classifier_pooling="mean")
        self.model.to(self.device).eval()
        self.width: int = self.model.config.hidden_size
        self._pooled: list[torch.Tensor] = []
        parent_of_layers(self.model.model).register_forward_hook(
            lambda module, inputs, output: self._pooled.append(output.last_hidden_state[:, 0])
        )

    @property
    def parameters(self) -> int:
        """Without its head, which is not read."""
        base: Any = self.model.model.base_model
        return sum(parameter.numel() for parameter in base.parameters())

    @property
    def embedding_parameters(self) -> int:
        weight: Any = self.model.get_input_embeddings().weight
        return weight.numel()

    def save(self, folder: Path) -> None:
        base: Any = self.model.model.base_model
        base.save_pretrained(folder)

    def texts(self, store: Store, cache: Path | None, fingerprint: str) -> EncodedTexts:
        """A store's, as it is cut and in this precision, kept under the folder `cache`. fingerprint: of the encoder."""
        read = f"{store.max_length}-{store.truncation}-{self.precision}"
        identity = f"{store.fingerprint}-{fingerprint}-{read}"
        name = f"{store.fingerprint[:16]}-{fingerprint.replace('/', '_')[-24:]}-{read}"
        return EncodedTexts(
            None if cache is None else cache / name,
            store,
            self.width,
            lambda rows: self._encode_rows(store, rows),
            identity,
        )

    def _encode_rows(self, store: Store, rows: np.ndarray) -> np.ndarray:
        if store.is_pair:
            raise ConfigError("the family frozen reads single texts: leave it out with --families")
        parts = [self.encode(values, bounds) for _, values, bounds in read_chunks(store, rows, _SORTED_TOKENS)]
        return np.concatenate(parts)

    def encode(self, values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """float32 (rows, width), of texts laid end to end, see `Fitted.probabilities`."""
        import torch

        from penstock.engine.training.precision import autocast
        from penstock.kernels import Ragged

        texts = [values[begin:end] for begin, end in pairwise(bounds)]
        lengths = np.array([len(text) for text in texts], np.int64)
        found = np.zeros((len(texts), self.width), np.float32)
        # a text without tokens has the zero vector
        order = np.argsort(lengths, kind="stable")[int((lengths == 0).sum()) :]
        begin = 0
        while begin < len(order):
            within = np.cumsum(lengths[order[begin:]]) <= _BATCH_TOKENS
            end = begin + max(1, int(within.sum()))
            rows = order[begin:end]
            flat = torch.from_numpy(np.concatenate([texts[row] for row in rows]))
            batch = Ragged.from_lengths(flat, lengths[rows].tolist()).to(self.device)
            self._pooled.clear()
            with torch.inference_mode(), autocast(self.precision, self.device):
                self.model(batch)
            found[rows] = self._pooled[0][: len(rows)].float().cpu().numpy()
            begin = end
        return found


def fit(task: FitTask) -> Frozen:
    """
    Raises:
        ConfigError: there is nothing to choose C by, or pairs of texts.
        ModelError: there is no such encoder.
        RunError: what was encoded before is damaged.
    """
    from penstock.engine.study.fingerprints import encoder_fingerprint

    assert task.settings.encoder is not None
    labels, num_labels = task.store.labels, task.store.num_labels
    encoder = Encoder(task.settings.encoder)
    fingerprint = encoder_fingerprint(task.settings.encoder)
    encoded = encoder.texts(task.store, task.cache, fingerprint).of(task.rows)
    rows, choice, validation = task.rows, None, np.empty(0, np.int64)
    if task.options.C is None:
        validation = task.validation("frozen.C")
        held_out = np.isin(task.rows, validation)
        mean, scale, features = _standardised(encoded.vectors[~held_out])
        models = fit_logistic(features, labels[rows[~held_out]], num_labels, _GRID, task.threads)
        choice = choose_c(models, (encoded.vectors[held_out] - mean) / scale, labels[validation], "frozen.C", _GRID)
    if choice is not None and not task.options.refit:
        model = choice.model
    else:
        mean, scale, features = _standardised(encoded.vectors)
        c = task.options.C if choice is None else choice.c
        ((_, model),) = fit_logistic(features, labels[rows], num_labels, [c], task.threads)
    found = Frozen(num_labels, encoder, mean, scale, model, task.cache, fingerprint=fingerprint)
    found.notes = tuple(settled_notes(model))
    if choice is not None:
        found.chosen = {"frozen.C": choice.c}
        found.validation_accuracy, found.validation_examples = choice.accuracy, len(validation)
        found.notes += (choice.note,) if choice.note else ()
    found.earlier_seconds, found.earlier_cpu_seconds = encoded.seconds, encoded.cpu_seconds
    return found


def untrained(task: FitTask) -> Frozen:
    assert task.settings.encoder is not None
    encoder = Encoder(task.settings.encoder)
    model = Logistic.untrained(encoder.width, task.store.labels[task.rows], task.store.num_labels)
    zeros = np.zeros(encoder.width, np.float32)
    return Frozen(task.store.num_labels, encoder, zeros, zeros + 1, model)


def _standardised(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean, scale and the vectors with mean 0 and variance 1."""
    mean, scale = vectors.mean(0), np.maximum(vectors.std(0), 1e-6)
    return mean, scale, (vectors - mean) / scale

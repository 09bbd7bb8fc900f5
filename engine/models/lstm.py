"""The LSTM classifier, a transformers model like any other."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from penstock.engine.models.classifier import RaggedClassifier
from penstock.engine.models.lstm_config import LSTMClassifierConfig
from penstock.engine.models.stock import has_hooks, is_untouched
from penstock.kernels import LSTM, Ragged, segment_pool
from penstock.kernels.dropout import dropout
from penstock.kernels.philox import new_seed

# Dropout's streams beyond those of the LSTM's layers, zoneout and weights.
_EMBEDDING_STREAM, _HEAD_STREAM = 4 << 16, 5 << 16


class LSTMClassifier(RaggedClassifier):
    """Token embeddings, a (bidirectional, stacked) LSTM, pooling over the tokens, and a linear classifier.

    Weights start as torch's own modules initialise them. Dropout depends on a seed from torch's generator and on the
    example (`Ragged.ids`), not on the batch around it.

    Example:
        >>> from penstock.engine import LSTMClassifier
        >>> from penstock.engine.models import LSTMClassifierConfig
        >>> import torch
        >>> from penstock.kernels import Ragged
        >>> tokens = Ragged.from_lengths(torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32), [3, 2])
        >>> model = LSTMClassifier(LSTMClassifierConfig(vocab_size=50, hidden_size=4, num_labels=3))
        >>> model(tokens).logits.shape
        torch.Size([2, 3])
    """

    config_class = LSTMClassifierConfig

    def __init__(self, config: LSTMClassifierConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        width = config.hidden_size * (2 if config.bidirectional else 1)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.embeddings.weight.requires_grad_(not config.freeze_embeddings)
        self.lstm = LSTM(
            config.embedding_size,
            config.hidden_size,
            config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )
        self.scores = nn.Linear(width, 1) if config.pooling == "attention" else None
        self.classifier = nn.Linear(width, len(config.id2label or ()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear | LSTM):
            module.reset_parameters()

    def prepare_inference(self, dtype: torch.dtype | None = None) -> "LSTMClassifier":
        """Keeps the LSTM's weights packed between calls that answer, see `LSTM.prepare_inference`."""
        self.lstm.prepare_inference(dtype)
        return self

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embeddings = value

    def _logits(self, batch: Ragged) -> Tensor:
        config = self.config
        seed = new_seed(batch.values.device) if self.training else None
        pooled = self._pooled(batch, seed)
        if seed is not None and config.head_dropout:
            one_each = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=pooled.device)
            pooled = dropout(pooled, one_each, config.head_dropout, seed, _HEAD_STREAM, batch.ids)
        return self.classifier(pooled)

    def _pooled(self, batch: Ragged, seed: Tensor | None) -> Tensor:
        """(batch, width): the texts, each a vector. The LSTM looks up and pools where it can.

        It does neither where something stands on the embeddings or on the LSTM that takes effect when they are called,
        or sees what goes in and comes out: a hook, a parametrization, another class.
        """
        config = self.config
        pools = config.pooling in ("max", "mean") and self._lstm_is_plain()
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        drops = config.embedding_dropout > 0
        if (seed is None or not drops) and self._lstm_is_plain() and self._embeddings_are_plain():
            options["embeddings"] = self.embeddings.weight
        else:
            x = self.embeddings(batch.values)
            if seed is not None and drops:
                x = dropout(x, batch.cu_seqlens, config.embedding_dropout, seed, _EMBEDDING_STREAM, batch.ids)
            batch = batch.with_values(x)
        if pools:
            return self.lstm(batch, pooling=config.pooling, **options)[0]
        hidden, (h_n, _) = self.lstm(batch, **options)
        if config.pooling in ("max", "mean"):
            return segment_pool(hidden.values, batch.cu_seqlens, config.pooling)
        if config.pooling == "last":
            last_layer = h_n[-2:] if config.bidirectional else h_n[-1:]
            return last_layer.transpose(0, 1).flatten(1)
        assert self.scores is not None
        return segment_pool(hidden.values, batch.cu_seqlens, "attention", self.scores(hidden.values))

    def looked_up(self) -> Tensor | None:
        """The table that a batch only looks up rows of, those of its token ids: no other row of its gradient is there.

        None where that cannot be known, as something stands on the embeddings.
        """
        weight = self.embeddings.weight
        return weight if self._embeddings_are_plain() and not weight._backward_hooks else None

    def _embeddings_are_plain(self) -> bool:
        table = self.embeddings
        if not is_untouched(table, frozenset({nn.Embedding})) or table.padding_idx is not None:
            return False
        return not (table.sparse or table.scale_grad_by_freq or table.max_norm)

    def _lstm_is_plain(self) -> bool:
        return type(self.lstm) is LSTM and "forward" not in vars(self.lstm) and not has_hooks(self.lstm)


AutoModelForSequenceClassification.register(LSTMClassifierConfig, LSTMClassifier)

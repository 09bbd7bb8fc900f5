"""The LSTM classifier, a transformers model like any other."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from penstock.engine.models.classifier import RaggedClassifier
from penstock.engine.models.lstm_body import HEAD_STREAM, LSTMBody
from penstock.engine.models.lstm_config import LSTMClassifierConfig
from penstock.kernels import Ragged, segment_pool
from penstock.kernels.dropout import dropout
from penstock.kernels.lstm.packed import Prepared
from penstock.kernels.philox import new_seed


class LSTMClassifier(LSTMBody, RaggedClassifier):
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
        self.scores = nn.Linear(self.width, 1) if config.pooling == "attention" else None
        self.classifier = nn.Linear(self.width, len(config.id2label or ()))
        self.post_init()

    def prepare_inference(self, dtype: torch.dtype | None = None) -> "LSTMClassifier":
        """Keeps the LSTM's weights packed between calls that answer, see `LSTM.prepare_inference`."""
        self.lstm.prepare_inference(dtype)
        return self

    @property
    def prepared(self) -> Prepared | None:
        """How the LSTM's weights are kept packed, None if they are not."""
        return self.lstm.prepared

    def _logits(self, batch: Ragged) -> Tensor:
        config = self.config
        seed = new_seed(batch.values.device) if self.training else None
        pooled = self._pooled(batch, seed)
        if seed is not None and config.head_dropout:
            one_each = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=pooled.device)
            pooled = dropout(pooled, one_each, config.head_dropout, seed, HEAD_STREAM, batch.ids)
        return self.classifier(pooled)

    def _pooled(self, batch: Ragged, seed: Tensor | None) -> Tensor:
        """(batch, width): the texts, each a vector. The LSTM pools where it can."""
        config = self.config
        pools = config.pooling in ("max", "mean") and self._lstm_is_plain()
        batch, options = self._lstm_input(batch, seed)
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

        None where that cannot be known, as something stands on the embeddings or changes what the model is called with.
        """
        weight = self.embeddings.weight
        plain = self._embeddings_are_plain() and not self._forward_pre_hooks
        return weight if plain and not weight._backward_hooks else None


AutoModelForSequenceClassification.register(LSTMClassifierConfig, LSTMClassifier)

"""From tokens to an LSTM's outputs: what its classifier and its pretraining share, under the same names."""

import re
from typing import Any

from torch import Tensor, nn

from penstock.engine.models.classifier import RaggedModel
from penstock.engine.models.lstm_config import LSTMClassifierConfig
from penstock.engine.models.stock import has_hooks, is_untouched, only_looks_up
from penstock.kernels import LSTM, Ragged
from penstock.kernels.dropout import dropout

# Dropout's streams beyond those of the LSTM's layers, zoneout and weights.
EMBEDDING_STREAM, HEAD_STREAM = 4 << 16, 5 << 16


class LSTMBody(RaggedModel):
    """Token embeddings and a (bidirectional, stacked) LSTM.

    Attributes:
        width: of the LSTM's output of a token.
    """

    config: LSTMClassifierConfig

    def __init__(self, config: LSTMClassifierConfig) -> None:
        super().__init__(config)
        self.width = config.hidden_size * (2 if config.bidirectional else 1)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.embeddings.weight.requires_grad_(not config.freeze_embeddings)
        self.lstm = LSTM(
            config.embedding_size,
            config.hidden_size,
            config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear | LSTM):
            module.reset_parameters()

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embeddings = value

    def depths(self) -> dict[nn.Parameter, int]:
        """How far up each parameter stands: 0 the embeddings, 1 the lowest layer, one more than the layers the head."""
        depths: dict[Any, int] = dict.fromkeys(self.parameters(), self.config.num_layers + 1)
        depths[self.embeddings.weight] = 0
        for name, parameter in self.lstm.named_parameters():
            found = re.search(r"_l(\d+)", name)  # weight_ih_l0_reverse
            assert found is not None
            depths[parameter] = int(found[1]) + 1
        return depths

    def _lstm_input(self, batch: Ragged, seed: Tensor | None) -> tuple[Ragged, dict[str, Any]]:
        """What the LSTM is called with: token ids and the table, which it looks up itself, or embedded tokens where
        something stands on the embeddings or on the LSTM that takes effect when they are called, or sees what goes in
        and comes out: a hook, a parametrization, another class, dropout.

        Args:
            seed: of dropout, in training; None without.
        """
        rate = 0.0 if seed is None else self.config.embedding_dropout
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        if not rate and self._lstm_is_plain() and self._embeddings_are_plain():
            return batch, options | {"embeddings": self.embeddings.weight}
        x = self.embeddings(batch.values)
        if seed is not None and rate:
            x = dropout(x, batch.cu_seqlens, rate, seed, EMBEDDING_STREAM, batch.ids)
        return batch.with_values(x), options

    def _embeddings_are_plain(self) -> bool:
        table = self.embeddings
        untouched = is_untouched(table, frozenset({nn.Embedding}))
        return untouched and only_looks_up(table) and table.padding_idx is None

    def _lstm_is_plain(self) -> bool:
        return type(self.lstm) is LSTM and "forward" not in vars(self.lstm) and not has_hooks(self.lstm)

"""Pretraining an LSTM on texts without labels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.engine.models import corruption
from penstock.engine.models.lstm_body import LSTMBody
from penstock.engine.models.lstm_config import LSTMPretrainingConfig
from penstock.engine.models.pretraining import PretrainingOutput, Vocabulary, corruption_seed
from penstock.engine.models.sampled_softmax import (
    IGNORED,
    draw_candidates,
    exact_cross_entropy,
    inclusion_probabilities,
    sampled_cross_entropy,
)
from penstock.kernels import Ragged

_EXACT_PLACES = 1_024  # scored over the whole vocabulary at a time


class LSTMForPretraining(LSTMBody):
    """Token embeddings and a (bidirectional, stacked) LSTM, with one of two tasks.

    masked: a share of the tokens is replaced by the mask token; what stood there is told from the LSTM's output, over
    the embeddings of the vocabulary (Devlin et al., NAACL 2019; always the mask token, as Wettig et al., EACL 2023,
    found no worse). In training the softmax is over a sample of the vocabulary, in evaluation over all of it.

    replaced: a share of the tokens is replaced by others, drawn as often as they occur; of every token it is told
    whether it was (Clark et al., ICLR 2020, with the unigram generator of their section 3.2).

    Which tokens depends on a seed from torch's generator, the row (`Ragged.ids`) and the position alone.
    """

    config_class = LSTMPretrainingConfig
    config: LSTMPretrainingConfig

    def __init__(self, config: LSTMPretrainingConfig) -> None:
        super().__init__(config)
        self.masks = config.objective == "masked"
        self.head = nn.Linear(self.width, config.embedding_size if self.masks else 1)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if self.masks else None
        self.post_init()

    def learn_from(self, vocabulary: Vocabulary) -> None:
        """Takes in what the texts consist of, without which there is nothing to draw from."""
        special = torch.zeros(self.config.vocab_size, dtype=torch.bool)
        special[list(vocabulary.special)] = True
        cumulative = np.cumsum(vocabulary.counts / vocabulary.counts.sum())
        candidates = min(self.config.candidates, self.config.vocab_size)
        inclusion = inclusion_probabilities(vocabulary.counts, candidates)
        for name, value in {
            "special": special,
            "cumulative": torch.from_numpy(cumulative / cumulative[-1]),
            "inclusion": torch.from_numpy(inclusion),
            "log_inclusion": torch.from_numpy(np.log(inclusion)).float(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def expected_count(self, tokens: int) -> float:
        """How much there is to tell in this many tokens, on average."""
        return tokens * self.config.share if self.masks else float(tokens)

    def forward(self, tokens: Ragged, token_type_ids: Tensor | None = None) -> PretrainingOutput:
        """
        Args:
            tokens: token ids, one at least. token_type_ids: ignored.
        """
        buffers: Any = self
        seed = corruption_seed(self.training, tokens.values.device)
        chosen = corruption.drawn(tokens, self.config.share, seed, buffers.special)
        if self.masks:
            assert self.config.mask_token_id is not None
            places = corruption.places_of(chosen)
            hidden = self._states(tokens.values.masked_fill(chosen, self.config.mask_token_id), tokens, seed)
            return self._told_apart(hidden[places.rows], places.targets(tokens.values, IGNORED), places.number)
        values = corruption.replaced(tokens, chosen.nonzero()[:, 0], seed, buffers.cumulative)
        scores = self.head(self._states(values, tokens, seed))[:, 0].float()
        differs = values != tokens.values
        loss = F.binary_cross_entropy_with_logits(scores, differs.float(), reduction="sum")
        count = torch.tensor(len(values), device=values.device)
        return PretrainingOutput(loss, ((scores.detach() >= 0) == differs).sum(), count)

    def _states(self, values: Tensor, tokens: Ragged, seed: Tensor) -> Tensor:
        """(total_tokens, width): the LSTM's outputs."""
        batch, options = self._lstm_input(tokens.with_values(values), seed if self.training else None)
        return self.lstm(batch, **options)[0].values

    def _told_apart(self, hidden: Tensor, targets: Tensor, count: Tensor) -> PretrainingOutput:
        """The loss of the hidden tokens, from the LSTM's outputs at their places, (places, width)."""
        buffers: Any = self
        table, bias = self.embeddings.weight, self.bias
        assert bias is not None
        # embeddings begin at a standard deviation of 1, which as an output layer would be too much
        hidden = self.head(hidden) * self.config.embedding_size**-0.5
        if self.training and self.config.candidates < self.config.vocab_size:
            candidates = draw_candidates(buffers.inclusion)
            loss = sampled_cross_entropy(hidden, table, bias, targets, candidates, buffers.log_inclusion)
        else:
            parts = zip(hidden.split(_EXACT_PLACES), targets.split(_EXACT_PLACES), strict=True)
            losses = [exact_cross_entropy(rows, table, bias, wanted) for rows, wanted in parts]
            loss = sum(one for one, _ in losses), sum(right for _, right in losses)  # type: ignore[assignment]
        return PretrainingOutput(*loss, count)

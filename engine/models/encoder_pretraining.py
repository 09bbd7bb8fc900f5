"""Masked-language modelling with a stock encoder, run without padding."""

import os
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from penstock.engine.models import corruption
from penstock.engine.models.encoder_body import EncoderBody, load_stock
from penstock.engine.models.loading import quiet
from penstock.engine.models.pretraining import PretrainingOutput, Vocabulary, corruption_seed
from penstock.engine.models.sampled_softmax import IGNORED, cross_entropy_of
from penstock.kernels import Ragged


class EncoderForPretraining(EncoderBody):
    """A stock `...ForMaskedLM` model; its head computes the hidden places alone.

    A share of the tokens is replaced by the mask token (always by it, as Wettig et al., EACL 2023, found no worse than
    the three ways of Devlin et al., NAACL 2019). Which ones depends on a seed from torch's generator, the row
    (`Ragged.ids`) and the position alone.

    Args:
        model: the stock model, changed as `EncoderBody` says. share: of the tokens, hidden.

    Raises:
        ModelError: the architecture cannot run unpadded.
    """

    def __init__(self, model: PreTrainedModel, share: float) -> None:
        super().__init__(model, _take, first_only=False)
        self.share = share

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, share: float, *, whole: bool = False, **config: Any
    ) -> "EncoderForPretraining":
        """Loads a checkpoint; see `load_stock`."""
        return cls(load_stock(AutoModelForMaskedLM, name, config, whole=whole), share)

    def learn_from(self, vocabulary: Vocabulary) -> None:
        """Takes in which tokens are special, and what hides others."""
        assert vocabulary.mask_token_id is not None
        self.mask_token_id = vocabulary.mask_token_id
        special = torch.zeros(len(vocabulary.counts), dtype=torch.bool)
        special[list(vocabulary.special)] = True
        self.register_buffer("special", special, persistent=False)

    def expected_count(self, tokens: int) -> float:
        """How much there is to tell in this many tokens, on average."""
        return tokens * self.share

    def saved_state(self) -> dict[str, Tensor]:
        """The tensors that `save_pretrained` writes: tied ones once."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in tied}

    def save_pretrained(self, path: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the stock model, which transformers loads without penstock, as a classifier's start too."""
        with quiet():
            self.model.save_pretrained(path, state_dict=self.saved_state() if state_dict is None else state_dict)

    def forward(self, tokens: Ragged, token_type_ids: Tensor | None = None) -> PretrainingOutput:
        """
        Args:
            tokens: token ids, one at least. token_type_ids: integers (total_tokens,), for models that have them.

        Raises:
            ModelError: a sequence is longer than the model has positions for.
        """
        buffers: Any = self
        seed = corruption_seed(self.training, tokens.values.device)
        chosen = corruption.drawn(tokens, self.share, seed, buffers.special)
        places = corruption.places_of(chosen)
        batch = tokens.with_values(tokens.values.masked_fill(chosen, self.mask_token_id))
        logits = self._run(batch, token_type_ids, told=places.rows).logits[0]
        loss = cross_entropy_of(logits, places.targets(tokens.values, IGNORED))
        return PretrainingOutput(*loss, places.number)


def _take(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """What the layers give, (1, total_tokens, width) -> (1, places, width): all that the head needs to see."""
    output.last_hidden_state = output.last_hidden_state[:, kwargs["told"]]
    return output

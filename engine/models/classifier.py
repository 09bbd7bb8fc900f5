"""What models of ragged batches share: how they are saved and, as classifiers, called."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from penstock.engine.models.loading import quiet
from penstock.engine.models.output import classifier_output, is_multi_label
from penstock.engine.models.ragged_input import as_ragged
from penstock.kernels import Ragged


class RaggedModel(PreTrainedModel):
    """A model of ours, beginning with `embeddings`, that is saved the way of transformers."""

    base_model_prefix = ""
    embeddings: nn.Embedding

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def saved_state(self) -> dict[str, Tensor]:
        """The tensors that `save_pretrained` writes; others of the same names can be given to it, as `state_dict`."""
        return self.state_dict()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        with quiet():
            super().save_pretrained(*args, **kwargs)


class RaggedClassifier(RaggedModel):
    """Texts to logits by `_logits`, which a subclass defines beside its `embeddings`."""

    def forward(
        self,
        input_ids: Ragged | Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        reduction: str = "mean",
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Classifies a batch of texts.

        Args:
            input_ids: token ids: a `Ragged` of (total_tokens,), or padded, (batch, length).
            attention_mask: (batch, length), nonzero where a token is; with padded input only.
            labels: integer, (batch,), or 0 and 1, (batch, num_labels), of a multi-label model.
            token_type_ids: ignored; some tokenizers give them.
            return_dict: False for a plain tuple.
            reduction: of the loss over the batch: "mean", "sum" or "none".
        Returns:
            logits (batch, num_labels) and, given labels, the loss. A text without tokens has the logits of a zero
            vector.
        Raises:
            TypeError, ValueError: the input is neither form, or the mask does not fit it. IndexError: a token id is not
                in the vocabulary.
        """
        logits = self._logits(as_ragged(input_ids, attention_mask))
        output = classifier_output(logits, labels, reduction, is_multi_label(self))
        return output.to_tuple() if return_dict is False else output

    def _logits(self, batch: Ragged) -> Tensor:
        """(batch, num_labels)"""
        raise NotImplementedError

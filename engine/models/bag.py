"""The bag-of-n-grams classifier, a transformers model like any other."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from penstock.engine.models.bag_config import BagClassifierConfig
from penstock.engine.models.loading import quiet
from penstock.engine.models.output import classifier_output, is_multi_label
from penstock.engine.models.ragged_input import as_ragged
from penstock.kernels import Ragged, ngram_bag


class BagClassifier(PreTrainedModel):
    """The mean of the embeddings of a text's n-grams, and a linear classifier (as Joulin et al. 2017, fastText).

    Tokens have embeddings of their own, longer n-grams share `buckets` of them by their hash. They start as zeros, so
    that an n-gram that training never met says nothing; their gradient is sparse. Everything is computed in float32.

    Example:
        >>> from penstock.engine import BagClassifier
        >>> from penstock.engine.models import BagClassifierConfig
        >>> import torch
        >>> from penstock.kernels import Ragged
        >>> tokens = Ragged.from_lengths(torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32), [3, 2])
        >>> model = BagClassifier(BagClassifierConfig(vocab_size=50, buckets=64, num_labels=3))
        >>> model(tokens).logits.shape
        torch.Size([2, 3])
    """

    config_class = BagClassifierConfig
    base_model_prefix = ""

    def __init__(self, config: BagClassifierConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        table = torch.zeros(config.vocab_size + config.buckets, config.embedding_size)
        self.embeddings = nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
        self.classifier = nn.Linear(config.embedding_size, len(config.id2label or ()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        with quiet():
            super().save_pretrained(*args, **kwargs)

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
        batch, config = as_ragged(input_ids, attention_mask), self.config
        table = self.embeddings.weight
        with torch.autocast(table.device.type, enabled=False):
            means = ngram_bag(
                batch.values.int(), batch.cu_seqlens, table, vocabulary=config.vocab_size, ngrams=config.ngrams
            )
            logits = self.classifier(means)
        output = classifier_output(logits, labels, reduction, is_multi_label(self))
        return output.to_tuple() if return_dict is False else output


AutoModelForSequenceClassification.register(BagClassifierConfig, BagClassifier)

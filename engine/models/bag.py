"""The bag-of-n-grams classifier, a transformers model like any other."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from penstock.engine.models.bag_config import BagClassifierConfig
from penstock.engine.models.classifier import RaggedClassifier
from penstock.kernels import Ragged, checks, ngram_bag


class BagClassifier(RaggedClassifier):
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

    def _logits(self, batch: Ragged) -> Tensor:
        table, config = self.embeddings.weight, self.config
        with torch.autocast(table.device.type, enabled=False):
            means = ngram_bag(
                checks.as_int32(batch.values),
                batch.cu_seqlens,
                table,
                vocabulary=config.vocab_size,
                ngrams=config.ngrams,
            )
            return self.classifier(means)


AutoModelForSequenceClassification.register(BagClassifierConfig, BagClassifier)

"""The bag classifier's configuration: apart, because transformers may ask for it before its model classes exist."""

from transformers.models.auto.configuration_auto import AutoConfig

from penstock.engine.models.own_config import OwnConfig


class BagClassifierConfig(OwnConfig):
    """Sizes of a `BagClassifier`; their meaning is that of `ModelSettings`."""

    model_type = "penstock_bag"
    own_module = "penstock.engine.models.bag"
    attribute_map = {"hidden_size": "embedding_size"}  # noqa: RUF012 (transformers' own declaration)

    vocab_size: int = 30522
    ngrams: int = 2
    buckets: int = 1 << 21
    embedding_size: int = 16
    pad_token_id: int | None = None


AutoConfig.register(BagClassifierConfig.model_type, BagClassifierConfig)

"""The LSTM's configurations: apart, because transformers may ask for them before the model classes exist."""

from transformers.models.auto.configuration_auto import AutoConfig

from penstock.engine.models.own_config import OwnConfig


class LSTMClassifierConfig(OwnConfig):
    """Sizes and options of an `LSTMClassifier`; their meaning is that of `ModelSettings`."""

    model_type = "penstock_lstm"
    own_module = "penstock.engine.models.lstm"
    attribute_map = {"num_hidden_layers": "num_layers"}  # noqa: RUF012 (transformers' own declaration)

    vocab_size: int = 30522
    embedding_size: int = 256
    hidden_size: int = 256
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max"
    embedding_dropout: float = 0.0
    dropout: float = 0.1
    head_dropout: float = 0.1
    freeze_embeddings: bool = False
    pad_token_id: int | None = None


class LSTMPretrainingConfig(LSTMClassifierConfig):
    """Sizes and options of an `LSTMForPretraining`; their meaning is that of `PretrainingSettings`."""

    model_type = "penstock_lstm_pretraining"

    objective: str = "masked"
    share: float = 0.15
    candidates: int = 4096
    mask_token_id: int | None = None


AutoConfig.register(LSTMClassifierConfig.model_type, LSTMClassifierConfig)
AutoConfig.register(LSTMPretrainingConfig.model_type, LSTMPretrainingConfig)

"""Models that learn from texts without labels: built, loaded, and made the start of a classifier."""

import os
from typing import Any

from transformers import PreTrainedTokenizerBase

from penstock.engine.errors import ModelError
from penstock.engine.models.build import (
    build_lstm,
    check_token_types,
    check_tokenizer,
    encoder_dropouts,
    is_pretraining,
    model_folder,
)
from penstock.engine.models.encoder_pretraining import EncoderForPretraining
from penstock.engine.models.loading import load_config, load_whole
from penstock.engine.models.lstm_config import LSTMPretrainingConfig
from penstock.engine.models.lstm_pretraining import LSTMForPretraining
from penstock.engine.models.pretraining_settings import PretrainingSettings
from penstock.engine.models.settings import ModelSettings


def build_pretraining(
    settings: ModelSettings, pretraining: PretrainingSettings, vocab_size: int, tokenizer: PreTrainedTokenizerBase
) -> LSTMForPretraining | EncoderForPretraining:
    """A new model; an encoder begins from its checkpoint's weights.

    Args:
        vocab_size: the number of different token ids in the data. tokenizer: the data's.

    Raises:
        ModelError: the encoder cannot be loaded or used, or the data was prepared with another tokenizer than its own,
            or the tokenizer has no mask token where one is needed.
    """
    if pretraining.objective == "masked" and tokenizer.mask_token_id is None:
        remedy = "set pretraining.objective=replaced, or " if settings.kind == "lstm" else ""
        raise ModelError(
            f"the data's tokenizer has no mask token, which hides tokens: {remedy}prepare the data with another one"
        )
    if settings.encoder is not None:
        check_tokenizer(settings.encoder, vocab_size, tokenizer)
    if settings.kind == "encoder":
        assert settings.encoder is not None
        check_token_types(tokenizer)
        changed = encoder_dropouts(settings)
        model = EncoderForPretraining.from_pretrained(settings.encoder, pretraining.share, **changed)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return model
    return build_lstm(
        LSTMForPretraining,
        settings,
        vocab_size,
        tokenizer,
        objective=pretraining.objective,
        share=pretraining.share,
        candidates=pretraining.candidates,
        mask_token_id=tokenizer.mask_token_id,
    )


def load_pretraining(path: str | os.PathLike, share: float) -> LSTMForPretraining | EncoderForPretraining:
    """Loads a saved model, or that of a run.

    Args:
        share: of an encoder's tokens, hidden.

    Raises:
        ModelError: there is none, it is damaged, or it is a classifier.
    """
    folder = model_folder(path)
    config = load_config(folder)
    if not is_pretraining(config):
        raise ModelError(f"{path} holds no pretrained model")
    if not isinstance(config, LSTMPretrainingConfig):
        return EncoderForPretraining.from_pretrained(folder, share, whole=True)
    return load_whole(LSTMForPretraining, folder)


def pretrained_body(path: str | os.PathLike) -> dict[str, Any] | None:
    """The weights that a classifier takes from a pretrained LSTM: embeddings and layers; None for other models.

    Raises:
        ModelError: there is no saved model, or it is damaged.
    """
    if not isinstance(load_config(model_folder(path)), LSTMPretrainingConfig):
        return None
    weights = load_pretraining(path, 0.0).state_dict()
    return {name: tensor for name, tensor in weights.items() if name.startswith(("embeddings.", "lstm."))}

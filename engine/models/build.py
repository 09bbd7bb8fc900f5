"""From settings, or from a folder, to a model."""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from penstock.engine.data.tokenizers import load_with_transformers
from penstock.engine.errors import ModelError
from penstock.engine.models.architectures import architecture_of
from penstock.engine.models.bag import BagClassifier
from penstock.engine.models.bag_config import BagClassifierConfig
from penstock.engine.models.encoder import EncoderClassifier
from penstock.engine.models.encoder_body import EncoderBody
from penstock.engine.models.loading import as_model_error, check_files, load_config, load_whole, quiet
from penstock.engine.models.lora import add_lora
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.models.lstm_body import LSTMBody
from penstock.engine.models.lstm_config import LSTMClassifierConfig, LSTMPretrainingConfig
from penstock.engine.models.output import MULTI_LABEL
from penstock.engine.models.settings import ModelSettings

Lstm = TypeVar("Lstm", bound=LSTMBody)

# Entries of a saved model's configuration that a finished run adds, and transformers passes over.
TEMPERATURE, THRESHOLDS = RUN_ENTRIES = "calibration_temperature", "thresholds"


def build_model(
    settings: ModelSettings,
    *,
    vocab_size: int,
    num_labels: int,
    label_names: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    multi_label: bool = False,
) -> LSTMClassifier | EncoderClassifier | BagClassifier:
    """A new model, its fresh weights drawn from torch's generator.

    Args:
        vocab_size: the number of different token ids in the data.
        label_names: the names of the classes in the order of their numbers.
        tokenizer: the one that the data was prepared with; compared with the encoder's, if one is used.
        multi_label: it answers for each label by itself (sigmoid) instead of choosing one (softmax).
    Raises:
        ModelError: there are fewer than two classes, the encoder cannot be loaded or used, or the data was prepared
            with another tokenizer than the encoder's.
    """
    if num_labels < 2:
        raise ModelError(f"a classifier needs at least two classes, the data has {num_labels}")
    names = [str(name) for name in label_names or (f"LABEL_{i}" for i in range(num_labels))]
    if len(names) != num_labels:
        raise ModelError(f"{len(names)} label names for {num_labels} classes")
    labels: dict = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    labels["problem_type"] = MULTI_LABEL if multi_label else None
    if settings.encoder is not None and (settings.kind == "encoder" or settings.embeddings == "encoder"):
        check_tokenizer(settings.encoder, vocab_size, tokenizer)
    if settings.kind == "encoder":
        check_token_types(tokenizer)
        return _build_encoder(settings, labels)
    if settings.kind == "bag":
        return _build_bag(settings, vocab_size, labels, tokenizer)
    return build_lstm(LSTMClassifier, settings, vocab_size, tokenizer, pooling=settings.pooling, **labels)


def settings_of_saved(settings: ModelSettings, folder: Path) -> ModelSettings:
    """The settings that build the model in a folder from what is in that folder: a run's encoder may be gone by then,
    or another one.

    Args:
        settings: those that the model was built by.

    Raises:
        ModelError: there is no saved model.
    """
    if settings.kind == "encoder":
        return dataclasses.replace(settings, encoder=str(folder))
    size = getattr(load_config(folder), "embedding_size", None)
    return dataclasses.replace(
        settings, embeddings="scratch", embedding_size=size, encoder=None, start_from=str(folder)
    )


def load_model(path: str | os.PathLike) -> LSTMClassifier | EncoderClassifier | BagClassifier:
    """Loads a saved model: a folder with a `config.json`, or a run, of which the best checkpoint is taken.

    Example:
        >>> from penstock.engine import load_model
        >>> load_model("run").config.num_labels
        3

    Raises:
        ModelError: there is none, or it cannot be loaded, or it is a pretrained one, which has no classifier.
    """
    folder = model_folder(path)
    config = load_config(folder)
    if is_pretraining(config):
        raise ModelError(
            f"{path} holds a pretrained model, which is no classifier yet: penstock train --from makes one"
        )
    kinds: dict[type, Any] = {LSTMClassifierConfig: LSTMClassifier, BagClassifierConfig: BagClassifier}
    if (of := kinds.get(type(config))) is None:
        return EncoderClassifier.from_pretrained(folder, whole=True)
    return load_whole(of, folder)


def model_folder(path: str | os.PathLike) -> Path:
    """The folder of a saved model, of a run its best one, whose files have been compared with their checksums.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        if not (folder / "best" / "config.json").is_file():
            raise ModelError(f"no model in {folder}: neither config.json nor best/config.json is there")
        folder = folder / "best"
    check_files(folder)
    return folder


def is_pretraining(config: PreTrainedConfig) -> bool:
    """Whether a saved model is one of pretraining, without a classifier."""
    return isinstance(config, LSTMPretrainingConfig) or any(
        str(name).endswith("ForMaskedLM") for name in config.architectures or ()
    )


def encoder_dropouts(settings: ModelSettings) -> dict[str, Any]:
    """Entries of the encoder's configuration for the rates that the settings change."""
    assert settings.encoder is not None
    architecture = architecture_of(load_config(settings.encoder))
    rates = (settings.encoder_dropout, settings.encoder_attention_dropout, settings.encoder_head_dropout)
    return {name: rate for name, rate in zip(architecture.dropouts, rates, strict=True) if rate is not None}


def _build_encoder(settings: ModelSettings, labels: dict) -> EncoderClassifier:
    assert settings.encoder is not None
    model = EncoderClassifier.from_pretrained(settings.encoder, **labels, **encoder_dropouts(settings))
    forget_run(model.config)
    adapt(model, settings)
    return model


def forget_run(config: PreTrainedConfig) -> None:
    """Takes out what an earlier run found of its own model: temperature and thresholds."""
    for entry in RUN_ENTRIES:
        config.__dict__.pop(entry, None)


def adapt(model: EncoderClassifier, settings: ModelSettings) -> None:
    """Freezes what is not trained, and adds the adapters."""
    model.get_input_embeddings().weight.requires_grad_(not settings.freeze_embeddings)
    if settings.freeze_layers is not None:
        model.freeze_layers(settings.freeze_layers)
    if settings.lora_rank is not None:
        add_lora(
            model.model,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            targets=settings.lora_targets,
        )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()


def build_lstm(
    kind: type[Lstm],
    settings: ModelSettings,
    vocab_size: int,
    tokenizer: PreTrainedTokenizerBase | None,
    **entries: Any,
) -> Lstm:
    """A new LSTM of a class of `LSTMBody`.

    Args:
        entries: of its configuration, beyond what the body reads.
    """
    assert settings.num_layers is not None
    assert settings.hidden_size is not None
    pretrained = None
    embedding_size = settings.embedding_size
    if settings.embeddings == "encoder":
        assert settings.encoder is not None
        pretrained = _token_embeddings(settings.encoder)[:vocab_size]
        if embedding_size not in (None, pretrained.shape[1]):
            raise ModelError(
                f"model.embedding_size={embedding_size}, but the token embeddings of {settings.encoder!r} have "
                f"{pretrained.shape[1]} dimensions; leave it out"
            )
        embedding_size = pretrained.shape[1]
    assert embedding_size is not None
    config_class: Any = kind.config_class
    config = config_class(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        bidirectional=settings.bidirectional,
        embedding_dropout=settings.embedding_dropout,
        dropout=settings.dropout,
        head_dropout=settings.head_dropout,
        freeze_embeddings=settings.freeze_embeddings,
        pad_token_id=None if tokenizer is None else tokenizer.pad_token_id,
        **entries,
    )
    model = kind(config)
    if pretrained is not None:
        with torch.no_grad():
            model.embeddings.weight.copy_(pretrained)
    return model


def _build_bag(
    settings: ModelSettings, vocab_size: int, labels: dict, tokenizer: PreTrainedTokenizerBase | None
) -> BagClassifier:
    assert settings.embedding_size is not None
    assert settings.buckets is not None or settings.ngrams == 1
    config = BagClassifierConfig(
        vocab_size=vocab_size,
        ngrams=settings.ngrams,
        buckets=(settings.buckets or 0) if settings.ngrams > 1 else 0,
        embedding_size=settings.embedding_size,
        pad_token_id=None if tokenizer is None else tokenizer.pad_token_id,
        **labels,
    )
    return BagClassifier(config)


def _token_embeddings(name: str) -> torch.Tensor:
    config = load_config(name)
    with quiet(), as_model_error(name):
        encoder = AutoModel.from_pretrained(name, config=config, dtype=torch.float32, trust_remote_code=False)
    return encoder.get_input_embeddings().weight.detach()


def check_token_types(tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Training gives no token types, which are zeros then; transformers gives a saved model what its tokenizer says.

    Raises:
        ModelError: the tokenizer gives others.
    """
    if tokenizer is None or "token_type_ids" not in tokenizer.model_input_names:
        return
    if any(tokenizer("a").get("token_type_ids", [])):
        raise ModelError(
            "the tokenizer gives a single text token types other than 0, which penstock does not train with; take "
            "token_type_ids out of model_input_names in its tokenizer_config.json"
        )


def check_pair_types(model: nn.Module) -> None:
    """For data whose tokenizer gives pairs of texts token types.

    Raises:
        ModelError: an encoder that has none for the second text, so that transformers could not run it on pairs.
    """
    if not isinstance(model, EncoderBody):
        return  # the others read a pair as one sequence
    takes = "token_type_ids" in inspect.signature(model.model.forward).parameters
    if not takes or getattr(model.config, "type_vocab_size", 0) < 2:
        raise ModelError(
            f"the data's tokenizer gives the second text of a pair token type 1, which a {model.config.model_type} "
            "encoder of this configuration does not know; take token_type_ids out of model_input_names in the "
            "tokenizer's tokenizer_config.json and prepare the data again"
        )


def check_tokenizer(encoder: str, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """
    Raises:
        ModelError: the data has other token ids than the encoder.
    """
    rows = load_config(encoder).vocab_size
    remedy = f"prepare it with --tokenizer {encoder}"
    try:
        own = None if tokenizer is None else load_with_transformers(encoder)
    except (OSError, ValueError):
        own = None
    if own is not None and len(own.get_vocab()) == len(own.all_special_tokens):
        own = None  # a checkpoint without a tokenizer, for which transformers makes one: there are only ids to compare
    if vocab_size > rows:
        if own is not None and max(own.get_vocab().values(), default=-1) >= rows:
            remedy = (
                "tokens were added to its tokenizer and not to its embeddings: call "
                "model.resize_token_embeddings(len(tokenizer)) and save the model again"
            )
        raise ModelError(f"the data has {vocab_size} token ids, encoder {encoder!r} knows {rows}; {remedy}")
    if own is not None and tokenizer is not None and own.get_vocab() != tokenizer.get_vocab():
        raise ModelError(f"the data was prepared with another tokenizer than encoder {encoder!r} has; {remedy}")

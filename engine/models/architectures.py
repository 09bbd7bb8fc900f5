"""The encoders of transformers that run unpadded, and where they differ."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from penstock.engine.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """What the ragged path must know of one architecture.

    Attributes:
        layers: the path of the list of layers inside the base model.
        positions_after_padding: whether positions count from `pad_token_id + 1`, as in fairseq, not from 0.
        dropouts: the configuration's names for the dropout of hidden states, of attention weights, and of the head.
    """

    layers: str
    positions_after_padding: bool = False
    dropouts: tuple[str, str, str] = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


ARCHITECTURES = {
    "bert": Architecture("encoder.layer"),
    "electra": Architecture("encoder.layer"),
    "roberta": Architecture("encoder.layer", positions_after_padding=True),
    "xlm-roberta": Architecture("encoder.layer", positions_after_padding=True),
    "camembert": Architecture("encoder.layer", positions_after_padding=True),
    "distilbert": Architecture("transformer.layer", dropouts=("dropout", "attention_dropout", "seq_classif_dropout")),
    "modernbert": Architecture("layers", dropouts=("mlp_dropout", "attention_dropout", "classifier_dropout")),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model's configuration.

    Raises:
        ModelError: penstock cannot run this architecture unpadded.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    name = config.name_or_path or config.model_type
    if architecture is None:
        raise ModelError(
            f"encoder {name!r} is a {config.model_type!r} model, which cannot run unpadded; use one of the types "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    if getattr(config, "is_decoder", False):
        raise ModelError(f"encoder {name!r} is configured as a decoder (is_decoder), whose tokens see only the past")
    return architecture


def counts_after_padding(config: PreTrainedConfig) -> bool:
    """Whether positions count from behind the padding token's, which all padding tokens share."""
    return architecture_of(config).positions_after_padding


def max_length(config: PreTrainedConfig) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    taken = config.pad_token_id + 1 if counts_after_padding(config) else 0
    return config.max_position_embeddings - taken


def pools_mean(config: PreTrainedConfig | None) -> bool:
    """Whether the stock head reads the mean over the tokens; else it reads the first one."""
    return getattr(config, "classifier_pooling", "cls") == "mean"


def parent_of_layers(model: PreTrainedModel) -> nn.Module:
    """The module that runs the layers one after the other."""
    return model.base_model.get_submodule(architecture_of(model.config).layers.rpartition(".")[0])


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of layers of a model with a head."""
    layers = model.base_model.get_submodule(architecture_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers

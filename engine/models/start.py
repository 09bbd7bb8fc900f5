"""A model that starts from the weights of an earlier one of penstock's, of the same architecture."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.engine.errors import ModelError
from penstock.engine.models.build import (
    adapt,
    build_model,
    forget_run,
    is_pretraining,
    load_model,
    model_folder,
    settings_of_saved,
)
from penstock.engine.models.loading import load_config
from penstock.engine.models.output import is_multi_label
from penstock.engine.models.pretrained import pretrained_body
from penstock.engine.models.settings import ModelSettings

Say = Callable[[str], None]


def start_model(
    settings: ModelSettings,
    folder: Path,
    *,
    label_names: Sequence[str],
    vocab_size: int,
    say: Say,
    multi_label: bool = False,
) -> Any:
    """A model with the weights of the saved one in `folder`; its output layer is new where the labels are others.

    Args:
        settings: those of the saved model; dropout and what is frozen may differ.
        say: prints a line for the user.
        multi_label: whether the new data has lists of labels.

    Raises:
        ModelError: there is no saved model, or it is of another architecture.
    """
    build = partial(
        build_model,
        vocab_size=vocab_size,
        num_labels=len(label_names),
        label_names=label_names,
        multi_label=multi_label,
    )
    if is_pretraining(load_config(place := model_folder(folder))):
        return _from_pretraining(settings, place, build, say)
    earlier: Any = load_model(folder)
    there = [str(earlier.config.id2label[index]) for index in range(len(earlier.config.id2label))]
    folder = folder if (folder / "config.json").is_file() else folder / "best"
    wanted = settings
    # its own weights first: adapters come beside them
    lora: dict[str, Any] = dict.fromkeys(("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"))
    model: Any = build(dataclasses.replace(settings_of_saved(settings, folder), **lora))
    model.config.pad_token_id = earlier.config.pad_token_id
    # a calibrated model's temperature lies in its weights: the new run begins without one of its own
    forget_run(model.config)
    weights = earlier.state_dict()
    fresh = {}
    one_kind = is_multi_label(earlier) == multi_label
    if there != list(label_names) or not one_kind:
        name = output_layer_name(model, len(label_names))
        fresh = _fresh_output(model, name)
        say(
            (
                f"{folder}: its {len(there)} labels are not the {len(label_names)} of the data: "
                if one_kind
                else f"{folder}: its texts had {'one label' if multi_label else 'lists of labels'}, the data's have "
                f"{'lists of labels' if multi_label else 'one label'}: "
            )
            + f"the output layer ({name}) is new, all other weights are kept"
        )
    try:
        model.load_state_dict({**weights, **fresh})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{folder} holds a model of another architecture: {reason}") from None
    if wanted.lora_rank is not None:
        adapt(model, wanted)
    return model


def _from_pretraining(settings: ModelSettings, place: Path, build: Callable[[ModelSettings], Any], say: Say) -> Any:
    """A classifier on what was learnt from texts without labels; all above that is new.

    Args:
        place: the folder of the saved model itself. build: makes a classifier for the data.
    """
    model = build(settings_of_saved(settings, place))
    say(f"{place}: pretrained on texts without labels: the classifier is new, all below it is kept")
    body = pretrained_body(place)
    if body is None:
        return model
    model.config.pad_token_id = load_config(place).pad_token_id
    weights = model.state_dict()
    for name, tensor in body.items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise ModelError(f"{place} holds a model of another architecture: its {name} has {tuple(tensor.shape)}")
    model.load_state_dict(weights | body)
    return model


def output_layer_name(model: nn.Module, num_labels: int) -> str:
    """The name of the linear layer that makes the logits.

    Raises:
        ModelError: there is none.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_labels
    ]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layer of {num_labels} outputs at its end")
    return names[-1]


def _fresh_output(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """New weights of the output layer, drawn from torch's generator."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    fresh = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    return {f"{name}.{key}": value for key, value in fresh.state_dict().items()}

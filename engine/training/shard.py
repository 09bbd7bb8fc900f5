"""`training.shard`: each process keeps a share of weights, gradients and optimizer (FSDP2), for what does not fit.

A layer's weights are brought together when it runs, forward and again backward; its gradients are added up and dealt
out as soon as they are there, after each batch of a step. Checkpoints are whole all the same: any number of processes
goes on from them. They are brought together tensor by tensor, by `HostCopy`, in the numbering of the optimizer's own
state_dict: torch's helpers for this (torch.distributed.checkpoint.state_dict) name tensors in another way, and take a
step to find out what an optimizer keeps.
"""

import warnings
from typing import Any

from torch import Tensor, nn

from penstock.engine.errors import ConfigError
from penstock.engine.models import EncoderClassifier
from penstock.engine.models.architectures import layers_of
from penstock.engine.models.stock import is_sharded
from penstock.engine.training.distributed import World
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.settings import Settings

__all__ = ["check_can_shard", "is_sharded", "is_share", "local", "place", "shard", "share_of", "whole"]


def shard(model: nn.Module, world: World) -> None:
    """Moves each process's share of a model to its device, one part after the other: the whole model is never there.

    An encoder's embeddings and layers are parts of their own; what is left, and any other model, is one part.

    Args:
        model: on the CPU, the same in all processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes a second to import

    # parts give out views, which torch warns of; nothing here writes to them in place, which is what they are bad for
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in _parts(model):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def check_can_shard(settings: Settings) -> None:
    """
    Raises:
        ConfigError: another setting does not go with shares of a model.
    """
    if settings.training.compile:
        raise ConfigError("training.compile=true does not go with training.shard=true: leave one of them out")
    if settings.data.tokens_per_batch == "auto":
        raise ConfigError(
            "data.tokens_per_batch=auto tries whole models, which training.shard=true does without: state a number"
        )


def place(model: nn.Module, settings: TrainingSettings, world: World) -> None:
    """Moves a model, or this process's share of it, to the process's device."""
    if settings.shard and world.size > 1:
        shard(model, world)
    else:
        model.to(world.device)


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all have whole, dealt as `like` is; itself where that is whole."""
    if not is_share(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shared: Any = like
    # a copy, or the share would keep the whole tensor
    return distribute_tensor(tensor, shared.device_mesh, shared.placements, src_data_rank=None).clone()


def whole(tensor: Tensor) -> Tensor:
    """The tensor of all processes' shares, each of which has to call this; itself where it is whole."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What is here of it, in the same memory; itself where it is whole."""
    return tensor.to_local() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is dealt to several processes."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose class takes a second to import


def _parts(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, EncoderClassifier):
        return []
    base: Any = model.model.base_model
    return [base.embeddings, *layers_of(model.model)]

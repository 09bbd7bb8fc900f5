"""Whether modules are exactly what their library made.

Only then may a faster path read a module's parameters in place of calling it: whatever else stands there, a hook, a
parametrization, an adapter, another class, another method, takes effect when the module is called and not otherwise.
The answer is asked for at every call, so each question costs a fraction of a microsecond.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import Parameter
from transformers.activations import ACT2CLS

# What a layer is made of: the names of its parts, with the classes that may stand there, or with their own parts.
Parts: TypeAlias = "Mapping[str, frozenset[type] | Parts]"

LINEAR = frozenset({nn.Linear})
NORM = frozenset({nn.LayerNorm})
DROPOUT = frozenset({nn.Dropout, nn.Identity})
ACTIVATION = frozenset(entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())

_FORWARDS: dict[type, Callable[..., Any] | None] = {}  # by class, as first seen
_METHODS = frozenset({"forward", "feed_forward_chunk", "ff_chunk"})


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs anything before or after its forward, or watches its gradients."""
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or torch_module._has_any_global_hook()
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether the class of a module still has the forward that it was defined with."""
    cls = type(module)
    return _defined_forward(cls) is cls.forward


def is_untouched(module: nn.Module, classes: frozenset[type]) -> bool:
    """Whether a module without parts is one of the classes, and a call of it its class's forward and nothing else."""
    return type(module) in classes and not has_hooks(module) and _is_as_made(module, set())


def is_made_of(layer: nn.Module, parts: Parts, dtypes: set[torch.dtype]) -> bool:
    """Whether all the parts of a layer of the transformers library are untouched, and no others are there.

    Hooks of the layer itself do not count: they run when it is called, whatever its forward does.

    Args:
        dtypes: the dtypes of all parameters are put here.
    """
    file = type(layer).__module__
    if torch_module._has_any_global_hook() or not file.startswith("transformers.models."):
        return False
    return (
        has_own_forward(layer) and "feed_forward_chunk" not in layer.__dict__ and _parts_are(layer, parts, file, dtypes)
    )


def is_lora(module: nn.Module) -> bool:
    """Whether a module is a linear layer with peft's plain low-rank adapters."""
    return type(module).__module__ == "peft.tuners.lora.layer" and type(module).__name__ == "Linear"


def _parts_are(module: nn.Module, parts: Parts, file: str, dtypes: set[torch.dtype]) -> bool:
    children = module.__dict__["_modules"]
    if len(children) != len(parts):
        return False
    for name, kind in parts.items():
        child = children.get(name)
        if type(kind) is frozenset:
            if type(child) not in kind and not (kind is LINEAR and child is not None and _is_plain_lora(child, dtypes)):
                return False
        elif type(child).__module__ != file or not _parts_are(child, kind, file, dtypes):  # type: ignore[arg-type]
            return False
        if not _is_as_made(child, dtypes):
            return False
    return True


def _is_as_made(module: nn.Module, dtypes: set[torch.dtype]) -> bool:
    """Whether a module has no hooks, no methods and no parameters but those that its class gave it."""
    state = module.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or not _METHODS.isdisjoint(state)
    ):
        return False
    for name, parameter in state["_parameters"].items():
        # a subclass, such as a quantized weight, computes in its own way; so does what functional_call puts there
        if type(parameter) is not Parameter:
            if parameter is None and name == "bias":
                continue
            return False
        dtypes.add(parameter.dtype)
    cls = type(module)
    return _defined_forward(cls) is cls.forward


def _defined_forward(cls: type[nn.Module]) -> Callable[..., Any] | None:
    """The forward that came with a class, None if it has been replaced before it was first seen here."""
    if cls not in _FORWARDS:
        file = getattr(cls.forward, "__module__", None)
        _FORWARDS[cls] = cls.forward if any(base.__module__ == file for base in cls.__mro__) else None
    return _FORWARDS[cls]


def _is_plain_lora(module: nn.Module, dtypes: set[torch.dtype]) -> bool:
    if not is_lora(module) or module.__dict__.get("lora_variant") or type(module.base_layer) is not nn.Linear:
        return False
    return all(_is_as_made(part, dtypes) for part in module.modules() if part is not module)

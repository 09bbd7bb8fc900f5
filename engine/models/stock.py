"""Whether modules are exactly what their library made.

Only then may a faster path read a module's parameters in place of calling it: whatever else stands there, a hook, a
parametrization, an adapter, another class, another method, takes effect when the module is called and not otherwise.
The answer is asked for at every call of a layer, so it must be quick: a microsecond for a module.
"""

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import Parameter
from transformers.activations import ACT2CLS

# What a layer is made of: the names of its parts, with the classes that may stand there, or with their own parts.
Parts: TypeAlias = "Mapping[str, frozenset[type] | Parts]"

LINEAR: frozenset[type] = frozenset({nn.Linear})
NORM: frozenset[type] = frozenset({nn.LayerNorm})
DROPOUT: frozenset[type] = frozenset({nn.Dropout, nn.Identity})
_classes: list[Any] = [entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()]
ACTIVATION: frozenset[type] = frozenset(_classes)


def _forward_of(cls: type) -> Any:
    """The forward that came with a class; None if another file has put its own there."""
    forward: Any = cls.forward  # type: ignore[attr-defined]
    return forward if any(base.__module__ == forward.__module__ for base in cls.__mro__) else None


_FORWARDS = {cls: _forward_of(cls) for cls in {nn.Embedding} | LINEAR | NORM | DROPOUT | ACTIVATION}


def is_sharded(module: nn.Module) -> bool:
    """Whether torch's `fully_shard` has dealt the module's parameters to several processes."""
    return _own_class(module) is not type(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs anything before or after its forward, or watches its gradients.

    The hooks of `fully_shard`, which bring the parameters together and leave what they see as it is, do not count.
    """
    if _has_any_global_hook():
        return True
    state = module.__dict__
    return _has_hooks(state) and not (is_sharded(module) and all(map(_shards, _hooks(state))))


def has_stock_forward(module: nn.Module) -> bool:
    """Whether the forward of an untouched module's class is still torch's own."""
    cls = type(module)
    return _FORWARDS.get(cls) is cls.forward


def only_looks_up(table: nn.Embedding) -> bool:
    """Whether what its class does is a plain look-up: of rows as they are, with a gradient that is a sum of each."""
    return has_stock_forward(table) and not (table.sparse or table.scale_grad_by_freq or table.max_norm)


def is_untouched(module: nn.Module, classes: frozenset[type]) -> bool:
    """Whether a module without parts is one of the classes and a call of it runs that class's forward, nothing else."""
    return type(module) in classes and not _has_any_global_hook() and _is_leaf(module, set())


def is_made_of(layer: nn.Module, parts: Parts, dtypes: set[torch.dtype]) -> bool:
    """Whether all the parts of a layer of the transformers library are untouched, and no others are there.

    Hooks and the instance's forward of the layer itself do not count: they run when it is called, or they ask. Nor does
    the class that `fully_shard` puts before the layer's own.

    Args:
        dtypes: the dtypes of all parameters are put here.
    """
    file = _own_class(layer).__module__
    if _has_any_global_hook() or not file.startswith("transformers.models."):
        return False
    return _has_parts(layer, layer.__dict__, parts, file, dtypes)


def is_lora(module: nn.Module) -> bool:
    """Whether a module is a linear layer with peft's plain low-rank adapters."""
    cls = type(module)
    return cls is not nn.Linear and cls.__name__ == "Linear" and cls.__module__ == "peft.tuners.lora.layer"


def _own_class(module: nn.Module) -> type:
    """A module's class; without the one that `fully_shard` makes of it."""
    cls = type(module)
    fsdp = sys.modules.get("torch.distributed.fsdp")  # which takes a second to import
    sharding = None if fsdp is None else getattr(fsdp, "FSDPModule", None)
    return cls.__bases__[-1] if sharding is not None and issubclass(cls, sharding) else cls


def _hooks(state: dict[str, Any]) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for kind in kinds for hook in state[kind].values()]


def _shards(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp.")


def _has_hooks(state: dict[str, Any]) -> bool:
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def _has_parts(module: nn.Module, state: dict[str, Any], parts: Parts, file: str, dtypes: set[torch.dtype]) -> bool:
    children = state["_modules"]
    if len(children) != len(parts) or "feed_forward_chunk" in state or "ff_chunk" in state:
        return False
    if type(module).forward.__module__ != file:
        return False
    for name, kind in parts.items():
        child = children.get(name)
        cls = type(child)
        if type(kind) is frozenset:
            if cls in kind:
                if not _is_leaf(child, dtypes):
                    return False
            elif child is None or kind is not LINEAR or not _is_plain_lora(child, dtypes):
                return False
        else:
            if cls.__module__ != file:
                return False
            inner = child.__dict__
            if "forward" in inner or _has_hooks(inner) or not _has_parts(child, inner, kind, file, dtypes):  # type: ignore[arg-type]
                return False
    return True


def _is_leaf(module: nn.Module, dtypes: set[torch.dtype]) -> bool:
    """Whether a module has no hooks, no methods and no parameters but those that its class gave it."""
    state = module.__dict__
    if "forward" in state or _has_hooks(state):
        return False
    cls = type(module)
    if _FORWARDS.get(cls) is not cls.forward:
        return False
    for name, parameter in state["_parameters"].items():
        # a subclass, such as a quantized weight, computes in its own way; so does what functional_call puts there
        if type(parameter) is Parameter:
            dtypes.add(parameter.dtype)
        elif parameter is not None or name != "bias":
            return False
    return True


def _is_plain_lora(module: nn.Module, dtypes: set[torch.dtype]) -> bool:
    """Whether a module is what `is_lora` asks for, none of its variants, and untouched with all that is in it."""
    if not is_lora(module) or module.lora_variant or type(module).forward.__module__ != type(module).__module__:
        return False
    if "forward" in module.__dict__ or _has_hooks(module.__dict__):
        return False
    for part in module.modules():
        if part is module or type(part) in (nn.ModuleDict, nn.ParameterDict):
            continue
        if type(part) not in LINEAR | DROPOUT or not _is_leaf(part, dtypes):
            return False
    return True

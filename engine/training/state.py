"""What a checkpoint's tensors must be, compared with the model before any of them is loaded.

A fused optimizer trusts the shapes of its state: one of another shape is read and written beyond its end.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from penstock.engine.models.loading import load_config
from penstock.engine.training.adagrad import RowAdagrad

_SAFETENSORS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
_Layout = tuple[tuple[int, ...], torch.dtype]


class StateError(ValueError):
    """A training state is not of the model that is to go on; says what differs."""


@dataclass(frozen=True)
class ParameterLayout:
    """A trained parameter, and the tensors that the optimizer keeps of it once it has taken a step."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensors: Mapping[str, _Layout]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order that its state_dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[ParameterLayout]:
    """In the order that the optimizer's state_dict numbers the parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse}
    layouts = []
    for parameter in parameters_of(optimizer):
        shape, dtype = tuple(parameter.shape), parameter.dtype
        tensors: dict[str, _Layout]
        if isinstance(optimizer, RowAdagrad):
            tensors = {"sum": (shape[:1] if id(parameter) in sparse else shape, dtype)}
        else:
            tensors = {"step": ((), torch.float32), "exp_avg": (shape, dtype), "exp_avg_sq": (shape, dtype)}
        layouts.append(ParameterLayout(names[id(parameter)], shape, dtype, tensors))
    return layouts


def check_optimizer_state(
    state: Any, layout: Sequence[ParameterLayout], scaler: "torch.amp.GradScaler | None" = None
) -> None:
    """
    Args:
        state: as `Stepper.state_dict` gives it; of earlier versions without "parameters".

    Raises:
        StateError: it is of another model, or of none.
    """
    optimizer = _entry(state, "optimizer", dict)
    kept, groups = _entry(optimizer, "state", dict), _entry(optimizer, "param_groups", list)
    numbers = [number for group in groups for number in _entry(group, "params", list)]
    if numbers != list(range(len(layout))):
        raise StateError(f"its optimizer has {len(numbers)} parameters, the model trains {len(layout)}")
    if "parameters" in state:
        named = [[entry.name, list(entry.shape), str(entry.dtype)] for entry in layout]
        for there, here in itertools.zip_longest(_entry(state, "parameters", list), named):
            if there != here:
                raise StateError(f"its optimizer has {_described(there)} where the model has {_described(here)}")
    if unknown := [number for number in kept if number not in range(len(layout))]:
        raise StateError(f"its optimizer has tensors of parameter {unknown[0]!r}, which the model does not have")
    for number, tensors in kept.items():
        entry = layout[number]
        if not isinstance(tensors, dict) or tensors.keys() != entry.tensors.keys():
            found = ", ".join(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
            raise StateError(f"its optimizer keeps {found} of {entry.name}, not {', '.join(entry.tensors)}")
        for key, (shape, dtype) in entry.tensors.items():
            _check_tensor(f"{key} of {entry.name}", tensors[key], shape, dtype)
    if (overflows := _entry(state, "overflows", int)) < 0:
        raise StateError(f"its number of overflows is {overflows}")
    _check_scaler(_entry(state, "scaler", dict), {} if scaler is None else scaler.state_dict())


def check_weights(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """
    Raises:
        StateError: a tensor is missing, or is there and should not be, or has another shape or dtype.
    """
    for name in expected:
        if name not in found:
            raise StateError(f"it has no tensor {name}")
    for name, tensor in found.items():
        if name not in expected:
            raise StateError(f"it has a tensor {name}, which the model has not")
        _check_tensor(name, tensor, tuple(expected[name].shape), expected[name].dtype)


def check_counters(state: Any, kind: type) -> dict[str, Any]:
    """The entries of a dataclass of numbers, as a checkpoint has them.

    Raises:
        StateError: one is unknown, or of another type, or negative.
    """
    if not isinstance(state, dict):
        raise StateError(f"its counters are {type(state).__name__}")
    usual = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in state.items():
        if name not in usual:
            raise StateError(f"it counts {name!r}, which this penstock does not know")
        if usual[name] is None:
            right = value is None or isinstance(value, dict)
        elif isinstance(usual[name], str):
            right = isinstance(value, str)
        else:
            right = type(value) in (int, type(usual[name])) and math.isfinite(value) and (value >= 0 or "loss" in name)
        if not right:
            raise StateError(f"its {name} is {value!r:.60}")
    if lacking := {"epoch", "step", "examples", "tokens"} - state.keys():
        raise StateError(f"it does not count {', '.join(sorted(lacking))}")
    return state


def checked_loader_state(state: Any, counters: Any) -> dict[str, Any]:
    """
    Raises:
        StateError: it is not what `Loader.state_dict` gives, or not where the run's counters are.
    """
    if _entry(state, "step", int) < 0:
        raise StateError(f"its loader stands at step {state['step']}")
    for key in ("epoch", "examples", "tokens"):
        if _entry(state, key, int) != (there := getattr(counters, key)):
            raise StateError(f"its loader counts {state[key]:,} {key}, the run {there:,}")
    _entry(state, "plan", str)
    return state


def check_stored(checkpoint: Path, saved: Mapping[str, Tensor], label_names: Sequence[str] | None) -> None:
    """
    Args:
        saved: the tensors that the model would be saved as. label_names: of a classifier.

    Raises:
        StateError: what lies in the folder was converted when it was loaded: weights of another type, or other labels
            than the data has.
    """
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- it is no mapping
                there = tensors.get_slice(name).get_dtype()
                here = _SAFETENSORS.get(saved[name].dtype) if name in saved else None
                if here not in (None, there):
                    raise StateError(f"{file.name} has {name} in {there}, the model's is in {here}")
    if label_names is None:
        return
    names: dict[Any, Any] = load_config(checkpoint).id2label or {}
    if [str(names.get(number)) for number in range(len(names))] != list(label_names):
        raise StateError("config.json has other labels than the data")


def _check_tensor(what: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise StateError(f"{what} is a {type(tensor).__name__}, not a dense tensor")
    if tuple(tensor.shape) != shape:
        raise StateError(f"{what} has shape {tuple(tensor.shape)}, the model's is {shape}")
    if tensor.dtype != dtype:
        raise StateError(f"{what} is of {tensor.dtype}, the model's is of {dtype}")


def _check_scaler(found: dict[str, Any], expected: dict[str, Any]) -> None:
    if found.keys() != expected.keys():
        there, here = (", ".join(map(str, keys)) or "nothing" for keys in (found, expected))
        raise StateError(f"its loss scaling keeps {there}, this run's {here}: it was trained in another precision")
    for key, value in found.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise StateError(f"its loss scaling has {key} {value!r:.60}")


def _entry(state: Any, key: str, kind: type) -> Any:
    if not isinstance(state, dict) or not isinstance(state.get(key), kind):
        raise StateError(f"it has no {key}, or one of another kind")
    return state[key]


def _described(parameter: Any) -> str:
    return " ".join(map(str, parameter)) if isinstance(parameter, list) else repr(parameter)

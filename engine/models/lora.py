"""Low-rank adapters (LoRA, Hu et al., ICLR 2022) in an encoder, by the peft library."""

from typing import Any

import torch
from torch import Tensor, nn

from penstock.engine.errors import ConfigError, ModelError
from penstock.engine.models.architectures import layers_of
from penstock.engine.models.stock import is_lora

_ADAPTER = "default"
_ATTENTION = frozenset({"query", "key", "value", "q_lin", "k_lin", "v_lin", "out_lin", "Wqkv"})


def add_lora(model: Any, *, rank: int, alpha: float | None, dropout: float | None, targets: str | None) -> None:
    """Puts adapters beside linear layers of a stock model, and freezes all else but its head.

    Layers whose parameters are frozen already get none.

    Args:
        model: for sequence classification.
        rank, alpha, dropout: of the adapters; alpha None is twice the rank, dropout None none.
        targets: "all" (or None): every linear layer; "attention": those of the attention; or the names of linear
            layers inside a layer, separated by commas, such as query,value.

    Raises:
        ConfigError: peft is not installed.
        ModelError: no linear layer is named so.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("model.lora_rank needs peft: pip install 'penstock[lora]'") from None
    chosen = _targets(model, targets or "all")
    base = {id(parameter) for parameter in model.base_model.parameters()}
    pooler = getattr(model.base_model, "pooler", None)
    base -= {id(parameter) for parameter in pooler.parameters()} if pooler is not None else set()
    head = [parameter for parameter in model.parameters() if id(parameter) not in base]
    scale: Any = 2 * rank if alpha is None else alpha  # any number, though peft declares whole ones
    config = peft.LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout or 0.0, target_modules=chosen)
    peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for parameter in head:
        parameter.requires_grad_(True)


def has_lora(model: nn.Module) -> bool:
    return any(is_lora(module) for module in model.modules())


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the stock model that computes what this one does, its adapters added to the weights."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if not is_lora(module):
            continue
        base: Any = module.base_layer
        with torch.no_grad():
            weight = base.weight + module.get_delta_weight(_ADAPTER).to(base.weight.dtype)
        state = {key: value for key, value in state.items() if not key.startswith(name + ".")}
        state[f"{name}.weight"] = weight
        if base.bias is not None:
            state[f"{name}.bias"] = base.bias.detach()
    return state


def _targets(model: Any, targets: str) -> list[str]:
    """The full names of the linear layers meant."""
    names = {id(module): name for name, module in model.named_modules()}
    wanted = {name.strip() for name in targets.split(",")} - {""}
    chosen, known = [], set()
    for layer in layers_of(model):
        for path, module in layer.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            last = path.rpartition(".")[2]
            known.add(last)
            in_attention = last in _ATTENTION or path in ("attention.output.dense", "attn.Wo")
            meant = targets == "all" or (targets == "attention" and in_attention) or last in wanted
            if meant and module.weight.requires_grad:
                chosen.append(names[id(module)])
    unknown = wanted - known - {"all", "attention"}
    if unknown or not chosen:
        what = f"no linear layer is named {', '.join(sorted(unknown))}" if unknown else "every layer is frozen"
        raise ModelError(
            f"model.lora_targets={targets}: {what}; give all, attention, or some of {', '.join(sorted(known))}"
        )
    return chosen

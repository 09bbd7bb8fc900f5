"""Less work in the layers of a stock encoder, with the same results.

Methods are replaced on the modules themselves: parameters, their names and checkpoints stay as they are, and `unfuse`
takes everything back.

- The last layer computes its queries, and all that follows attention, for each sequence's first token only: a head that
  reads the first token never sees the others. Keys and values still come from every token, so this is exact.
- BERT's query, key and value are one matrix product.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from penstock.engine.models.bridge import attend, first_tokens
from penstock.engine.models.families import layers_of, pools_mean

_BERT_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def fuse(model: PreTrainedModel) -> None:
    """Replaces the methods of a model for sequence classification that runs through the bridge."""
    layers: Any = layers_of(model)
    model_type = model.config.model_type
    if model_type in _BERT_TYPES:
        for layer in layers:
            _replace(layer.attention.self, _bert_self_attention)
    if pools_mean(model.config):
        return
    if model_type in _BERT_TYPES:
        _replace(layers[-1], _bert_last_layer)
    elif model_type == "distilbert":
        _replace(layers[-1], _distilbert_last_layer)
    elif model_type == "modernbert" and layers[-1].attn.sliding_window is None:
        _replace(layers[-1], _modernbert_last_layer)


def unfuse(model: PreTrainedModel) -> None:
    """Gives every module its own methods back."""
    for module in model.modules():
        vars(module).pop("forward", None)


def is_fused(module: nn.Module) -> bool:
    return "forward" in vars(module)


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    vars(module)["forward"] = MethodType(forward, module)


def _joined(x: Tensor, *parts: nn.Linear) -> Tensor:
    """The outputs of several linear layers of equal size, (tokens, len(parts), width), by one matrix product."""
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    return F.linear(x, weight, bias).unflatten(-1, (len(parts), -1))


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """(tokens, 1, width) -> (tokens, heads, head_dim)."""
    return x.reshape(x.shape[0], -1, head_dim)


def _bert_self_attention(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    qkv = _joined(hidden_states[0], self.query, self.key, self.value)
    q, k, v = qkv.unflatten(-1, (-1, self.attention_head_size)).unbind(1)
    dropout = self.dropout.p if self.training else 0.0
    out = attend(q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
    return out.flatten(1)[None], None


def _bert_last_layer(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **kwargs: Any
) -> Tensor:
    attention = self.attention.self
    head_dim = attention.attention_head_size
    first, bounds = first_tokens(hidden_states, kwargs)
    kv = _joined(hidden_states[0], attention.key, attention.value)
    k, v = kv.unflatten(-1, (-1, head_dim)).unbind(1)
    dropout = attention.dropout.p if self.training else 0.0
    q = _heads(attention.query(first), head_dim)
    out = attend(q, k, v, attention_mask, dropout=dropout, scaling=attention.scaling, **bounds)
    return self.feed_forward_chunk(self.attention.output(out.flatten(1)[:, None], first))


def _distilbert_last_layer(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    attention = self.attention
    head_dim = attention.attention_head_size
    first, bounds = first_tokens(hidden_states, kwargs)
    kv = _joined(hidden_states[0], attention.k_lin, attention.v_lin)
    k, v = kv.unflatten(-1, (-1, head_dim)).unbind(1)
    dropout = attention.dropout.p if self.training else 0.0
    q = _heads(attention.q_lin(first), head_dim)
    out = attend(q, k, v, attention_mask, dropout=dropout, scaling=attention.scaling, **bounds)
    attended = self.sa_layer_norm(attention.out_lin(out.flatten(1)[:, None]) + first)
    return self.output_layer_norm(self.ffn(attended) + attended)


def _modernbert_last_layer(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    **kwargs: Any,
) -> Tensor:
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

    attention = self.attn
    weight, bias, width = attention.Wqkv.weight, attention.Wqkv.bias, hidden_states.shape[-1]
    q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    first, bounds = first_tokens(hidden_states, kwargs)
    q = _heads(F.linear(self.attn_norm(first), weight[:width], q_bias), attention.head_dim)
    kv = F.linear(self.attn_norm(hidden_states), weight[width:], kv_bias)
    k, v = kv.unflatten(-1, (2, -1, attention.head_dim)).unbind(2)
    # A first token's rotary angle is 0: its query stays as it is, and only the keys are turned.
    k, _ = apply_rotary_pos_emb(k, k[..., :0, :], *position_embeddings, unsqueeze_dim=2)
    dropout = attention.attention_dropout if self.training else 0.0
    out = attend(q, k[0], v[0], attention_mask, dropout=dropout, scaling=attention.head_dim**-0.5, **bounds)
    attended = first + attention.out_drop(attention.Wo(out.flatten(1)[:, None]))
    return attended + self.mlp(self.mlp_norm(attended))

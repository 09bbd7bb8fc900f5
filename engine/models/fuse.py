"""Less work in the layers of a stock encoder, with the same results.

Methods are replaced on the modules themselves: parameters, their names and checkpoints stay as they are, and `unfuse`
takes everything back. What replaces them reads parameters in place of calling modules, so at every call a layer first
asks whether all that it is made of is as the library made it (`stock.py`); if anything is not, it runs its own forward.
peft's plain LoRA is the exception: such a layer stays fused, and calls those of its linear layers that have adapters.

- The last layer computes its queries, and all that follows attention, for each sequence's first token only: a head that
  reads the first token never sees the others. Keys and values still come from every token, so this is exact.
- The query, key and value of BERT and DistilBERT are one matrix product. The gradients of the weights of all products
  are made in float32, and where there is Intel's matrix unit, by penstock.
- What follows a product there, bias, dropout, residual and LayerNorm, or bias and GELU, is one operation, and so is
  what lies between ModernBERT's attention and its MLP. Dropout's mask follows the example by the rule of
  `penstock.kernels.philox`: it is not the one that the stock module draws.
- ModernBERT's queries and keys are turned by their rotary angles in one operation, not through copies in float32, and
  the two halves of its MLP meet in one.
- The gradient of the token embeddings is made without torch's slow clearing, and on a CPU what is dropped of them is
  drawn by that rule too, the whole batch taken for one example: torch draws it on one thread.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from penstock.engine.models.architectures import layers_of, pools_mean
from penstock.engine.models.bridge import attend, first_tokens
from penstock.engine.models.packed_steps import check_unprepared, forget, steps_of
from penstock.engine.models.steps import PostNormParts, Steps, Sublayer
from penstock.engine.models.stock import (
    ACTIVATION,
    DROPOUT,
    LINEAR,
    NORM,
    Parts,
    has_hooks,
    has_stock_forward,
    is_lora,
    is_made_of,
    only_looks_up,
)
from penstock.kernels import philox, rotary
from penstock.kernels.autocast import as_called
from penstock.kernels.dropout import dropout as ragged_dropout
from penstock.kernels.embedding import embedding

PartsOf: TypeAlias = Callable[[Any], PostNormParts]


def fuse(model: PreTrainedModel, *, first_only: bool = True) -> None:
    """Replaces the methods of a model that runs through the bridge.

    Args:
        first_only: its head reads the first token of each text alone, unless its configuration says the mean.
    """
    table = model.get_input_embeddings()
    if type(table) is nn.Embedding:
        _replace(table, _look_up)
    embeddings: Any = model.base_model.embeddings
    for module in embeddings.modules():
        if type(module) is nn.Dropout:
            _replace(module, _drop)
    layers: Any = layers_of(model)
    model_type = model.config.model_type
    for layer in layers[:-1]:
        _replace(layer, _run_layer, model_type)
    first_only &= not pools_mean(model.config)
    _replace(layers[-1], _run_last_layer if first_only else _run_layer, model_type)


def unfuse(model: PreTrainedModel) -> None:
    """Gives every module its own methods back; weights that were kept packed for the others go."""
    for module in model.modules():
        if is_fused(module):
            del vars(module)["forward"]
            forget([module])


def is_fused(module: nn.Module) -> bool:
    replaced = vars(module).get("forward")
    return isinstance(replaced, functools.partial) and replaced.func in (_look_up, _drop, _run_layer, _run_last_layer)


def _replace(module: nn.Module, forward: Callable[..., Any], *arguments: Any) -> None:
    # Unlike a bound method a partial can be pickled: by the name of its function, which no module has as an attribute.
    vars(module)["forward"] = functools.partial(forward, module, *arguments)


def _run_layer(self: Any, model_type: str, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A layer, fused if nothing stands against it."""
    architecture = _ARCHITECTURES[model_type]
    if _can_fuse(self, architecture.parts, hidden_states):
        return architecture.layer(self, steps_of(self, hidden_states), hidden_states, *args, **kwargs)
    check_unprepared(self)
    return type(self).forward(self, hidden_states, *args, **kwargs)


def _run_last_layer(self: Any, model_type: str, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The last layer, (batch, 1, width) for first tokens alone, unless a hook on it or another part wants them all."""
    architecture = _ARCHITECTURES[model_type]
    if not _can_fuse(self, architecture.parts, hidden_states):
        check_unprepared(self)
        return type(self).forward(self, hidden_states, *args, **kwargs)
    sees_all = has_hooks(self) or not is_fused(self) or architecture.needs_all(self)
    run = architecture.layer if sees_all else architecture.last_layer
    return run(self, steps_of(self, hidden_states), hidden_states, *args, **kwargs)


def _can_fuse(layer: nn.Module, parts: Parts, hidden_states: Tensor) -> bool:
    dtypes: set[torch.dtype] = set()
    if not is_made_of(layer, parts, dtypes) or len(dtypes) != 1:
        return False
    device = hidden_states.device.type
    return hidden_states.dtype in dtypes or torch.is_autocast_enabled(device)


def _look_up(self: nn.Embedding, ids: Tensor) -> Tensor:
    if not only_looks_up(self):
        return type(self).forward(self, ids)
    return embedding(ids, self.weight, self.padding_idx)


def _drop(self: nn.Dropout, x: Tensor) -> Tensor:
    if x.device.type != "cpu" or not self.training or not has_stock_forward(self):
        return type(self).forward(self, x)
    rows = x.flatten(0, -2)
    whole = torch.tensor([0, rows.shape[0]], dtype=torch.int32)
    return ragged_dropout(rows, whole, self.p, philox.new_seed(), 0).view_as(x)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """(tokens, width) -> (tokens, heads, head_dim)."""
    return x.unflatten(-1, (-1, head_dim))


def _rows(hidden_states: Tensor) -> Tensor:
    """(1, tokens, width) -> (tokens, width), in the dtype that autocast asks for: cast once, not by every product."""
    return as_called(hidden_states.flatten(0, 1))  # unlike [0], whose gradient is copied into zeros


def _attended(q: Tensor, kv: Any, attention: Any, attention_mask: Tensor | None, bounds: dict[str, Any]) -> Tensor:
    """What each query's token attends to, (queries, width)."""
    dropout = attention.dropout.p if attention.training else 0.0
    k, v = kv
    return attend(q, k, v, attention_mask, dropout=dropout, scaling=attention.scaling, **bounds).flatten(1)


def _rate(dropout: nn.Module) -> float:
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _post_norm_layer(
    parts_of: PartsOf,
    self: Any,
    steps: Steps,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    **bounds: Any,
) -> Tensor:
    parts, hidden = parts_of(self), _rows(hidden_states)
    qkv = steps.products(hidden, parts.query, parts.key, parts.value)
    q, *kv = (_heads(part, parts.head_dim) for part in qkv)
    out = _attended(q, kv, parts.attention, attention_mask, bounds)
    return steps.after_attention(out, hidden, parts, bounds)[None]


def _post_norm_last_layer(
    parts_of: PartsOf,
    self: Any,
    steps: Steps,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    **bounds: Any,
) -> Tensor:
    parts, hidden = parts_of(self), _rows(hidden_states)
    first, bounds = first_tokens(hidden, bounds)
    kv = [_heads(part, parts.head_dim) for part in steps.products(hidden, parts.key, parts.value)]
    q = _heads(steps.product(first, parts.query), parts.head_dim)
    out = _attended(q, kv, parts.attention, attention_mask, bounds)
    return steps.after_attention(out, first, parts, bounds)[:, None]


def _bert_parts(layer: Any) -> PostNormParts:
    attention, inner = layer.attention.self, layer.intermediate
    first, second = (
        Sublayer(part.dense, part.LayerNorm, _rate(part.dropout)) for part in (layer.attention.output, layer.output)
    )
    dense, activation, head_dim = inner.dense, inner.intermediate_act_fn, attention.attention_head_size
    qkv = attention.query, attention.key, attention.value
    return PostNormParts(*qkv, attention, head_dim, first, dense, activation, second)


def _distilbert_parts(layer: Any) -> PostNormParts:
    attention, ffn = layer.attention, layer.ffn
    first = Sublayer(attention.out_lin, layer.sa_layer_norm)
    second = Sublayer(ffn.lin2, layer.output_layer_norm, _rate(ffn.dropout))
    qkv = attention.q_lin, attention.k_lin, attention.v_lin
    return PostNormParts(*qkv, attention, attention.attention_head_size, first, ffn.lin1, ffn.activation, second)


def _post_norm(parts: Parts, parts_of: PartsOf) -> "_Architecture":
    layer, last = (functools.partial(run, parts_of) for run in (_post_norm_layer, _post_norm_last_layer))
    return _Architecture(parts, layer, last)


def _turned(q: Tensor, k: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries and keys, (tokens, heads, head_dim), turned by their tokens' angles, (1, tokens, head_dim) each."""
    return rotary(q, k, *(angle.flatten(0, 1) for angle in angles))


def _modernbert_attention(
    self: Any,
    steps: Steps,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor,
    attention_mask: Tensor | None,
    bounds: dict[str, Any],
) -> Tensor:
    """A layer from its queries on, (queries, width)."""
    attention = self.attn
    dropout = attention.attention_dropout if attention.training else 0.0
    window = attention.sliding_window
    scaling = attention.head_dim**-0.5
    out = attend(q, k, v, attention_mask, dropout=dropout, scaling=scaling, sliding_window=window, **bounds).flatten(1)
    first = Sublayer(attention.Wo, self.mlp_norm, _rate(attention.out_drop))
    return steps.after_attention_prenorm(out, residual, first, self.mlp, bounds)


def _modernbert_layer(
    self: Any,
    steps: Steps,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    **bounds: Any,
) -> Tensor:
    hidden = hidden_states.flatten(0, 1)
    qkv = steps.product(self.attn_norm(hidden), self.attn.Wqkv)
    q, k, v = qkv.unflatten(-1, (3, -1, self.attn.head_dim)).unbind(1)
    q, k = _turned(q, k, position_embeddings)
    return _modernbert_attention(self, steps, q, k, v, hidden, attention_mask, bounds)[None]


def _modernbert_last_layer(
    self: Any,
    steps: Steps,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    **bounds: Any,
) -> Tensor:
    attention, hidden = self.attn, hidden_states.flatten(0, 1)
    first, bounds = first_tokens(hidden, bounds)
    inputs, sizes = (self.attn_norm(first), self.attn_norm(hidden)), (hidden.shape[1], 2 * hidden.shape[1])
    q, kv = steps.products_apart(inputs, attention.Wqkv, sizes)
    q = _heads(q, attention.head_dim)
    k, v = kv.unflatten(-1, (2, -1, attention.head_dim)).unbind(1)
    # A first token's rotary angle is 0: cos, which some rope types scale, is one number and sin nothing.
    q = (q * position_embeddings[0][0, 0]).to(q.dtype)
    _, k = _turned(k[:, :0], k, position_embeddings)
    return _modernbert_attention(self, steps, q, k, v, first, attention_mask, bounds)[:, None]


def _modernbert_needs_all(layer: Any) -> bool:
    # a first token sees the tokens of its window only, and adapters have no rows to themselves for keys and values
    return layer.attn.sliding_window is not None or is_lora(layer.attn.Wqkv) or pools_mean(layer.config)


class _Architecture(NamedTuple):
    """What a layer is made of and computes, and what the last one computes unless all of its tokens are needed."""

    parts: Parts
    layer: Callable[..., Tensor]
    last_layer: Callable[..., Tensor]
    needs_all: Callable[[Any], bool] = lambda layer: False


_ADD_AND_NORM: Parts = {"dense": LINEAR, "LayerNorm": NORM, "dropout": DROPOUT}
_BERT_PARTS: Parts = {
    "attention": {
        "self": {"query": LINEAR, "key": LINEAR, "value": LINEAR, "dropout": DROPOUT},
        "output": _ADD_AND_NORM,
    },
    "intermediate": {"dense": LINEAR, "intermediate_act_fn": ACTIVATION},
    "output": _ADD_AND_NORM,
}
_DISTILBERT_PARTS: Parts = {
    "attention": {**dict.fromkeys(("q_lin", "k_lin", "v_lin", "out_lin"), LINEAR), "dropout": DROPOUT},
    "sa_layer_norm": NORM,
    "ffn": {"lin1": LINEAR, "lin2": LINEAR, "activation": ACTIVATION, "dropout": DROPOUT},
    "output_layer_norm": NORM,
}
_MODERNBERT_PARTS: Parts = {
    "attn_norm": NORM | {nn.Identity},
    "attn": {"Wqkv": LINEAR, "Wo": LINEAR, "out_drop": DROPOUT},
    "mlp_norm": NORM,
    "mlp": {"Wi": LINEAR, "act": ACTIVATION, "drop": DROPOUT, "Wo": LINEAR},
}
_BERT = _post_norm(_BERT_PARTS, _bert_parts)
_ARCHITECTURES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": _post_norm(_DISTILBERT_PARTS, _distilbert_parts),
    "modernbert": _Architecture(_MODERNBERT_PARTS, _modernbert_layer, _modernbert_last_layer, _modernbert_needs_all),
}

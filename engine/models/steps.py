"""What the layers of a fused encoder are made of: its linear layers' products, and what follows each of them."""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from penstock.engine.models.stock import is_lora
from penstock.kernels import bias_gelu, geglu, linear, residual_norm


class Sublayer(NamedTuple):
    """A linear layer whose product, dropped out, is added to what came before it, and the norm of the sum."""

    dense: nn.Linear
    norm: nn.LayerNorm
    dropout: float = 0.0


class PostNormParts(NamedTuple):
    """What a layer that normalises last is made of."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention: Any  # what has the scaling, and the dropout of attention weights
    head_dim: int
    first: Sublayer
    inner: nn.Linear
    activation: nn.Module
    second: Sublayer


class Steps:
    """By the weights themselves, recorded by autograd. Rows are (tokens, width)."""

    def products(self, x: Tensor, *parts: nn.Linear) -> tuple[Tensor, ...]:
        """The outputs of linear layers of equal size, (tokens, width) each; by one product if none has adapters."""
        if any(map(is_lora, parts)):
            return tuple(self.product(x, part) for part in parts)
        biases = biases_of(*parts)
        if len(biases) not in (0, len(parts)):
            return tuple(self.product(x, part) for part in parts)
        out = self._linear(x, [part.weight for part in parts], biases)
        return out.unflatten(-1, (len(parts), -1)).unbind(1)

    def product(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return dense(x) if is_lora(dense) else self._linear(x, [dense.weight], biases_of(dense))

    def products_apart(
        self, inputs: tuple[Tensor, ...], dense: nn.Linear, sizes: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """The outputs of a layer without adapters in parts of these sizes, each of an input of its own."""
        weights, biases = dense.weight.split(sizes), [bias.split(sizes) for bias in biases_of(dense)]
        return tuple(self._linear(x, [weights[i]], [bias[i] for bias in biases]) for i, x in enumerate(inputs))

    def _linear(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        return linear(x, weights, biases)

    def activated(self, x: Tensor, dense: nn.Linear, activation: nn.Module) -> Tensor:
        return self._gelu(x, dense) if is_gelu(activation) else activation(self.product(x, dense))

    def gated(self, x: Tensor, dense: nn.Linear, activation: nn.Module) -> Tensor:
        """activation(gate) * value, of the halves (gate, value) of a row of the product."""
        if is_gelu(activation):
            return self._geglu(x, dense)
        gate, value = self.product(x, dense).chunk(2, -1)
        return activation(gate) * value

    def after_attention(self, x: Tensor, residual: Tensor, parts: PostNormParts, bounds: dict[str, Any]) -> Tensor:
        """The rest of a layer that normalises last, of what attention gave, x, and of what the layer was given."""
        first, second = parts.first, parts.second
        hidden = self.add(x, first.dense, residual, first.norm, first.dropout, bounds)
        inner = self.activated(hidden, parts.inner, parts.activation)
        return self.add(inner, second.dense, hidden, second.norm, second.dropout, bounds)

    def after_attention_prenorm(
        self, x: Tensor, residual: Tensor, first: Sublayer, mlp: Any, bounds: dict[str, Any]
    ) -> Tensor:
        """The same of a layer that normalises first, as ModernBERT's: `first` ends in the norm of its gated MLP."""
        normal, hidden = self.add(x, first.dense, residual, first.norm, first.dropout, bounds, prenorm=True)
        return hidden + self.product(mlp.drop(self.gated(normal, mlp.Wi, mlp.act)), mlp.Wo)

    def _gelu(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return bias_gelu(*_product_and_bias(x, dense))

    def _geglu(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return geglu(*_product_and_bias(x, dense))

    def add(
        self,
        x: Tensor,
        dense: nn.Linear,
        residual: Tensor,
        norm: nn.LayerNorm,
        dropout: float,
        bounds: dict[str, Any],
        /,
        *,
        prenorm: bool = False,
    ) -> Any:
        """norm(residual + dropout(dense(x))); with prenorm that and the sum."""
        product, bias = _product_and_bias(x, dense)
        normed: Any = residual_norm  # which of its results there are depends on prenorm
        return normed(
            product,
            residual,
            norm.weight,
            norm.bias,
            x_bias=bias,
            eps=norm.eps,
            dropout_p=dropout,
            cu_seqlens=bounds["cu_seq_lens_q"],
            ids=bounds["example_ids"],
            prenorm=prenorm,
        )


def biases_of(*parts: nn.Linear) -> list[Tensor]:
    return [part.bias for part in parts if part.bias is not None]


def is_gelu(activation: nn.Module) -> bool:
    return type(activation) is GELUActivation and activation.act is F.gelu


def _product_and_bias(x: Tensor, dense: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """What is left to be added comes second."""
    return (dense(x), None) if is_lora(dense) else (linear(x, [dense.weight]), dense.bias)

"""`LSTM`: torch.nn.LSTM's place-taker."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from penstock.kernels import checks, convert, philox
from penstock.kernels.lstm import export
from penstock.kernels.lstm.functional import lstm
from penstock.kernels.lstm.packed import PackedLayers, Prepared
from penstock.kernels.lstm.protocol import LayerWeights
from penstock.kernels.packing import check_asked
from penstock.kernels.ragged import Ragged

_WEIGHT_STREAM = 3 << 16


class LSTM(nn.RNNBase):
    """A drop-in for torch.nn.LSTM: same arguments, parameters, initialisation and state_dict.

    By isinstance it is an nn.RNNBase but not an nn.LSTM, because torch.compile refuses those (fullgraph=True) or leaves
    them uncompiled. For code that requires one there is `to_torch()`: a torch.nn.LSTM with the same weights.

    Takes what nn.LSTM takes (padded, a PackedSequence, or one unbatched sequence), and a Ragged or a jagged
    NestedTensor; the output has the input's form. h_n and c_n have the input's dtype.

    torch.jit.trace records torch's own LSTM, torch.onnx.export writes ONNX's operator; what these cannot compute raises
    ValueError. Tools that require the class nn.LSTM itself, such as torch.jit.script and quantize_dynamic, need
    `to_torch()`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in nn.LSTM. Dropout is reproducible: its mask depends on a seed and on the example (`Ragged.ids`), the
            token's place and the layer, not on the batch around it.
        variational: draw dropout's mask once per sequence, not per token (Gal & Ghahramani, NeurIPS 2016).
        weight_dropout: probability of dropping a weight of W_hh, drawn once per call (DropConnect, as in
            AWD-LSTM; Merity et al., ICLR 2018).
        zoneout: probability of keeping an old state; one for h and c, or a pair (Krueger et al., ICLR 2017).

    Raises:
        TypeError: a size is not an integer, or a probability not a number.
        ValueError: input_size, hidden_size or num_layers is not positive, or a probability is outside [0, 1].
    """

    prepared: Prepared | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variational: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "proj_size": proj_size}
        for name, size in sizes.items():
            sizes[name] = checks.integer(name, size)
        if sizes["input_size"] < 1:
            raise ValueError(f"input_size must be positive, got {input_size}")
        self.zoneout = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
        self.variational = variational
        self.weight_dropout = weight_dropout
        if len(self.zoneout) != 2:
            raise ValueError(f"zoneout must be one probability or two, got {zoneout}")
        checks.probability("weight_dropout", weight_dropout)
        for p in self.zoneout:
            checks.probability("zoneout", p)
        input_size, hidden_size, num_layers, proj_size = sizes.values()
        rest = bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        super().__init__("LSTM", input_size, hidden_size, num_layers, *rest)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.variational:
            text += ", variational=True"
        if self.weight_dropout:
            text += f", weight_dropout={self.weight_dropout}"
        if any(self.zoneout):
            text += f", zoneout={self.zoneout}"
        if self.prepared is not None:
            text += f", prepared={self.prepared}"
        return text

    def flatten_parameters(self) -> None:
        """Nothing to do: these kernels take the weights where they lie."""

    def prepare_inference(self, dtype: torch.dtype | None = None) -> "LSTM":
        """Keeps the weights as the C++ kernels read them, so that calls without gradients need not pack them.

        The state is `prepared`, which `repr` shows. train(), load_state_dict() and whatever moves or converts the
        parameters undo it; copies and pickles are without it. A weight that has changed is packed again at the next
        call: torch counts changes in place, and of those that it does not see (through `.data` or NumPy) 64 words of
        each weight tell. After a smaller one of these call this again.

        Args:
            dtype: None, to compute as before, with the same results to the bit. torch.bfloat16, to compute in it where
                weights and input are float32; the input is still of the weights' dtype, and so are the results.
                torch.int8, to multiply in whole numbers of 8 bits, with a scale for each row of W_ih, W_hh and x, and
                compute the rest as before; h_0 must then lie in [-1, 1].

        Calls that record gradients or are traced, compiled or transformed take the weights themselves; with a dtype
        they raise RuntimeError.

        Returns:
            The module.

        Raises:
            RuntimeError: the module is in training.
            ValueError: another dtype, or the weights cannot be packed: another device or dtype than the kernels', a
                projection, zoneout, weights that are computed (parametrizations, pruning), another backend; weights
                that are not finite in int8.
        """
        check_asked(self, dtype)
        self.prepared = Prepared(self, dtype)
        return self

    def train(self, mode: bool = True) -> "LSTM":
        if mode:
            self.prepared = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.prepared = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.prepared = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copy.copy; deep copies and pickles of whatever holds it find nothing in the place of `prepared`."""
        return {**super().__getstate__(), "prepared": None}

    def to_torch(self) -> nn.LSTM:
        """A stock torch.nn.LSTM with copies of the weights, as they are with parametrizations and pruning applied.

        It is in the same mode, training or evaluation; its dropout is torch's, not reproducible.

        Raises:
            ValueError: nn.LSTM has no zoneout and, in training, no weight_dropout and no variational dropout.
        """
        return export.to_torch(self)

    def __prepare_scriptable__(self) -> nn.LSTM:
        """Stops torch.jit.script, which would leave a module that stands in for this one in the caller's model."""
        raise RuntimeError(
            "torch.jit.script cannot compile penstock's LSTM: put lstm.to_torch(), a torch.nn.LSTM with its weights, "
            "in its place in a copy of the model (or load its state_dict into one); torch.jit.trace takes it as it is"
        )

    def __setattr__(self, attr: str, value: Any) -> None:
        if attr == "qconfig":  # torch.ao.quantization sets it on every module that it walks past
            warnings.warn(
                "torch.ao.quantization leaves penstock's LSTM unquantized, since it replaces the class torch.nn.LSTM "
                "alone: if it is to be quantized, put lstm.to_torch() in its place beforehand",
                stacklevel=2,
            )
        super().__setattr__(attr, value)

    def forward(
        self,
        input: Tensor | PackedSequence | Ragged,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        return_cells: bool = False,
        seed: Tensor | None = None,
        embeddings: Tensor | None = None,
        pooling: str | None = None,
    ) -> Any:
        """Runs the layers.

        Args:
            input: (T, B, I), or (B, T, I) with batch_first; (T, I) unbatched; a PackedSequence; a Ragged of
                (tokens, I); or a jagged NestedTensor of (B, *, I).
            hx: (h_0, c_0), (L * D, B, P) and (L * D, B, H), without B if unbatched; zero if None.
            resets: bool, True at tokens where a new segment starts; of input's shape without I, or (tokens,) in the
                order of the values of a Ragged, a NestedTensor, a PackedSequence. For a NestedTensor it may also be
                one, of the same lengths.
            return_cells: also return all cell states, a list with one entry per layer, in the input's form but float32.
            seed: int64 scalar for dropout; drawn from torch's generator if None.
            embeddings: (rows, I), a table that input, a Ragged of int32 or int64 (tokens,), looks up. Faster than
                looking up beforehand: each distinct row is projected once, however often it occurs.
            pooling: "max" or "mean": output is pooled over each sequence, (B, D * P), as by `segment_pool`, and at
                inference never stored token by token. For a Ragged.

        Returns:
            output, (h_n, c_n) as nn.LSTM does, then the cell states if asked for.
        """
        tracing = torch.jit.is_tracing()
        if tracing or (torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()):
            if self.prepared is not None:
                self.prepared.for_call(self)  # refuses where a dtype was asked for
            run = export.traced if tracing else export.onnx
            options = {"resets": resets, "return_cells": return_cells, "embeddings": embeddings, "pooling": pooling}
            return run(self, input, hx, options)
        if (embeddings is not None or pooling is not None) and not isinstance(input, Ragged):
            raise TypeError(f"input must be a Ragged with embeddings or pooling, got {type(input).__name__}")
        form = convert.RaggedForm.of(input, self.batch_first, features=embeddings is None)
        ragged = form.ragged
        table = ragged.values if embeddings is None else embeddings
        if table.shape[-1] != self.input_size:
            name = "input" if embeddings is None else "embeddings"
            raise ValueError(f"{name} has {table.shape[-1]} features, expected input_size = {self.input_size}")
        h0, c0 = (None, None) if hx is None else (form.state_in(state) for state in hx)
        resets = None if resets is None else form.tokens_in("resets", resets)
        checks.seed(seed, ragged.values.device)
        if seed is None and self.training and (self.dropout or self.weight_dropout or any(self.zoneout)):
            seed = philox.new_seed(ragged.values.device)
        packed: PackedLayers | None = None
        if self.prepared is not None:
            packed = self.prepared.for_call(self, table, ragged.values, ragged.cu_seqlens, h0, c0, resets)
        y, h_n, c_n, *cells = lstm(
            ragged.values,
            ragged.cu_seqlens,
            ragged.max_seqlen,
            self._layers(seed) if packed is None else packed.weights,
            h0,
            c0,
            dropout=self.dropout,
            variational=self.variational,
            zoneout=self.zoneout,
            training=self.training,
            resets=resets,
            return_cells=return_cells,
            ids=ragged.ids,
            seed=seed,
            embeddings=embeddings,
            pooling=pooling,
            packed=packed,
        )
        states = form.state_out(h_n), form.state_out(c_n.to(h_n.dtype))
        output = form.values_out(y) if pooling is None else y
        if return_cells:
            return output, states, [form.values_out(layer) for layer in cells[0]]
        return output, states

    def _layers(self, seed: Tensor | None) -> list[LayerWeights]:
        suffixes = ["", "_reverse"] if self.bidirectional else [""]

        def weights(kind: str, layer: int) -> list[Tensor]:
            return [getattr(self, f"{kind}_l{layer}{suffix}") for suffix in suffixes]

        layers = []
        for layer in range(self.num_layers):
            w_hh = weights("weight_hh", layer)
            if self.weight_dropout and self.training and seed is not None:
                w_hh = [self._drop(w, seed, _WEIGHT_STREAM + 2 * layer + d) for d, w in enumerate(w_hh)]
            layers.append(
                LayerWeights(
                    weights("weight_ih", layer),
                    w_hh,
                    weights("bias_ih", layer) if self.bias else [],
                    weights("bias_hh", layer) if self.bias else [],
                    weights("weight_hr", layer) if self.proj_size else [],
                )
            )
        return layers

    def _drop(self, weight: Tensor, seed: Tensor, stream: int) -> Tensor:
        row = torch.arange(weight.shape[0], dtype=torch.int64, device=weight.device)
        kept = philox.keep_mask(seed, torch.zeros_like(row), row, stream, weight.shape[1], self.weight_dropout)
        return weight * kept * philox.scale(self.weight_dropout)

"""A stock encoder of transformers, run without padding: what its classifier and its pretraining share."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from penstock.engine.errors import ModelError
from penstock.engine.models.architectures import (
    architecture_of,
    counts_after_padding,
    layers_of,
    max_length,
    parent_of_layers,
)
from penstock.engine.models.bridge import ATTENTION, bounds, positions
from penstock.engine.models.fuse import fuse
from penstock.engine.models.loading import as_model_error, check_whole, load_config, quiet
from penstock.engine.models.ragged_input import filled_up
from penstock.kernels import Ragged

# oneDNN compiles a matrix product for its very shape and keeps a thousand of them, megabytes for every new number of
# tokens or texts. On a CPU these are rounded up to multiples.
TOKENS, _TEXTS = 32, 8


class EncoderBody(nn.Module):
    """Runs a stock model on ragged batches, all tokens of a batch as one row; its code and its checkpoints stay stock.

    Args:
        model: the stock model. It is changed: attention goes through the bridge, and some methods are replaced by
            faster ones (`fuse.py`). Its parameters and what it saves stay as they were, for transformers alone to load.
        hook: a forward hook, with keyword arguments, on the module that runs the layers: what its head gets to see.
        first_only: the head reads the first token of each text alone.

    Raises:
        ModelError: the architecture cannot run unpadded.
    """

    def __init__(self, model: PreTrainedModel, hook: Callable[..., Any], *, first_only: bool) -> None:
        super().__init__()
        architecture_of(model.config)
        self.model = model
        self.max_length = max_length(model.config)
        model.set_attn_implementation(ATTENTION)
        parent = parent_of_layers(model)
        # By name: register_forward_hook numbers hooks from 0 in each process, so in one that a model is loaded in, or
        # passed to, the next hook would take the place of this one.
        parent._forward_hooks["penstock"] = hook  # type: ignore[index]
        parent._forward_hooks_with_kwargs["penstock"] = True  # type: ignore[index]
        fuse(model, first_only=first_only)

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def gradient_checkpointing_enable(self) -> None:
        # The second is the first one's name in transformers before 5.23.
        names = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        enable = next(getattr(self.model, name) for name in names if hasattr(self.model, name))
        enable({"use_reentrant": False})

    def depths(self) -> dict[nn.Parameter, int]:
        """How far up each parameter stands: 0 the embeddings, 1 the lowest layer, one more than the layers the head."""
        layers = layers_of(self.model)
        base: Any = self.model.base_model
        lowest = [base.embeddings, getattr(base, "embeddings_project", None)]  # the second is ELECTRA's
        depths = dict.fromkeys(self.model.parameters(), len(layers) + 1)
        for depth, module in enumerate([nn.ModuleList(module for module in lowest if module is not None), *layers]):
            depths.update(dict.fromkeys(module.parameters(), depth))
        return depths

    def _run(self, batch: Ragged, token_types: Tensor | None, **more: Any) -> Any:
        """The stock model's output.

        Args:
            batch: of token ids. token_types: (total_tokens,); zeros if None. more: keyword arguments for the hook.

        Raises:
            ValueError: there is no token, or the token types do not fit.
            ModelError: a sequence is longer than the model has positions for, or another attention has been set.
        """
        tokens = batch.values.shape[0]
        if tokens == 0:
            raise ValueError("the batch has no tokens: an encoder reads at least one of each text, such as [CLS]")
        self._check_lengths(batch)
        if self.config._attn_implementation != ATTENTION:
            # no other knows the bounds of the sequences: each token would attend to the whole batch
            raise ModelError(
                f"the model's attention has been set to {self.config._attn_implementation!r}, which knows no bounds "
                f"between texts; set it back by model.set_attn_implementation({ATTENTION!r})"
            )
        if batch.values.device.type == "cpu" and not torch.compiler.is_compiling():
            batch = _rounded(batch, min(TOKENS, self.max_length))
        inputs: dict[str, Any] = {"input_ids": batch.values[None], **bounds(batch), **more}
        inputs["position_ids"] = positions(batch, self._padding_idx())[None]
        if token_types is not None:
            inputs["token_type_ids"] = F.pad(token_types, (0, batch.values.shape[0] - tokens))[None]
        if getattr(self.config, "use_cache", False):  # a decoder's, of which transformers warns in checkpointed layers
            inputs["use_cache"] = False
        return self.model(**inputs)

    def _padding_idx(self) -> int | None:
        """The token that has no position of its own, for an architecture that counts positions from behind it."""
        embeddings: Any = self.model.base_model.embeddings
        return embeddings.padding_idx if counts_after_padding(self.config) else None

    def _check_lengths(self, batch: Ragged) -> None:
        if batch.max_seqlen <= self.max_length:
            return
        longest, row = batch.lengths.max(0)  # max_seqlen is an upper bound: only now is the device asked
        if int(longest) > self.max_length:
            raise ModelError(
                f"sequence {int(row)} of the batch has {int(longest)} tokens, the model has positions for "
                f"{self.max_length}; cut the texts (data.max_length={self.max_length})"
            )


def _rounded(batch: Ragged, longest: int) -> Ragged:
    """The batch, followed by filler texts, none longer than `longest`, that round its sizes up."""
    texts, tokens = batch.batch_size, batch.values.shape[0]
    extra = -tokens % TOKENS
    more = -(-extra // longest)
    return filled_up(batch, tokens + extra, texts + more + -(texts + more) % _TEXTS, longest)


def load_stock(auto: Any, name: str | os.PathLike, config: dict[str, Any], *, whole: bool = False) -> PreTrainedModel:
    """Loads a checkpoint, with a fresh head (drawn from torch's generator) where it has none that fits.

    Args:
        auto: transformers' Auto class. name: a model's name on the Hugging Face hub, or the path of its folder.
        config: entries of the model's configuration to set. whole: its head has to be there too.

    Raises:
        ModelError: there is no such checkpoint, it cannot run unpadded, or it lacks weights of the encoder itself.
    """
    loaded = load_config(name)
    architecture_of(loaded)
    for key, value in config.items():
        setattr(loaded, key, value)
    with quiet(), as_model_error(name):
        model, info = auto.from_pretrained(
            name,
            config=loaded,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    if whole:
        check_whole(name, info)
    head = (model.base_model_prefix + ".pooler.",)
    lacking = [
        key
        for key in sorted(info["missing_keys"])
        if key.startswith(model.base_model_prefix + ".") and not key.startswith(head)
    ]
    if lacking:
        raise ModelError(f"model {str(name)!r} lacks {len(lacking)} weights of its encoder, such as {lacking[0]}")
    return model

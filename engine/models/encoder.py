"""A pretrained transformers encoder for sequence classification, run without padding."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from penstock.engine.errors import ModelError
from penstock.engine.models.architectures import (
    architecture_of,
    counts_after_padding,
    layers_of,
    max_length,
    parent_of_layers,
    pools_mean,
)
from penstock.engine.models.bridge import ATTENTION, bounds, first_tokens, positions
from penstock.engine.models.fuse import fuse
from penstock.engine.models.loading import as_model_error, check_whole, load_config, quiet
from penstock.engine.models.lora import has_lora, merged_state
from penstock.engine.models.output import classifier_output, is_multi_label
from penstock.engine.models.ragged_input import as_ragged, filled_up
from penstock.kernels import Ragged, segment_pool

# oneDNN compiles a matrix product for its very shape and keeps a thousand of them, megabytes for every new number of
# tokens or texts. On a CPU these are rounded up to multiples.
_TOKENS, _TEXTS = 32, 8


class EncoderClassifier(nn.Module):
    """Runs a stock `...ForSequenceClassification` model on ragged batches; its code and its checkpoints stay stock.

    All tokens of a batch go through the model as one row. The head, which expects one row a text, gets each sequence's
    first token (or the mean over its tokens, where the checkpoint pools so) from a hook.

    Example:
        >>> from penstock.engine import EncoderClassifier
        >>> import torch
        >>> from penstock.kernels import Ragged
        >>> tokens = Ragged.from_lengths(torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32), [3, 2])
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
        >>> stock = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes))
        >>> EncoderClassifier(stock)(tokens).logits.shape
        torch.Size([2, 3])

    Args:
        model: the stock model. It is changed: attention goes through the bridge, and some methods are replaced by
            faster ones (`fuse.py`). Its parameters and what it saves stay as they were, for transformers alone to load.

    Raises:
        ModelError: the architecture cannot run unpadded.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        architecture_of(model.config)
        self.model = model
        self.max_length = max_length(model.config)
        model.set_attn_implementation(ATTENTION)
        parent = parent_of_layers(model)
        # By name: register_forward_hook numbers hooks from 0 in each process, so in one that a model is loaded in, or
        # passed to, the next hook would take the place of this one.
        parent._forward_hooks["penstock"] = _pool  # type: ignore[index]
        parent._forward_hooks_with_kwargs["penstock"] = True  # type: ignore[index]
        fuse(model)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, *, whole: bool = False, **config: Any) -> "EncoderClassifier":
        """Loads a checkpoint, with a fresh head (drawn from torch's generator) where it has none that fits.

        Args:
            name: a model's name on the Hugging Face hub, or the path of its folder.
            whole: its head has to be there too.
            config: entries of the model's configuration to set, such as id2label and label2id.
        Raises:
            ModelError: there is no such checkpoint, it cannot run unpadded, or it lacks weights of the encoder itself.
        """
        loaded = load_config(name)
        architecture_of(loaded)
        for key, value in config.items():
            setattr(loaded, key, value)
        with quiet(), as_model_error(name):
            model, info = AutoModelForSequenceClassification.from_pretrained(
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
        return cls(model)

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

    def freeze_layers(self, count: int) -> None:
        """Leaves the embeddings and the lowest `count` layers as they are.

        Raises:
            ModelError: the model has fewer layers.
        """
        layers = layers_of(self.model)
        if count > len(layers):
            raise ModelError(f"model.freeze_layers={count}, but the encoder has {len(layers)} layers")
        for parameter, depth in self.depths().items():
            if depth <= count:
                parameter.requires_grad_(False)

    def depths(self) -> dict[nn.Parameter, int]:
        """How far up each parameter stands: 0 the embeddings, 1 the lowest layer, one more than the layers the head."""
        layers = layers_of(self.model)
        base: Any = self.model.base_model
        lowest = [base.embeddings, getattr(base, "embeddings_project", None)]  # the second is ELECTRA's
        depths = dict.fromkeys(self.model.parameters(), len(layers) + 1)
        for depth, module in enumerate([nn.ModuleList(module for module in lowest if module is not None), *layers]):
            depths.update(dict.fromkeys(module.parameters(), depth))
        return depths

    def saved_state(self) -> dict[str, Tensor]:
        """The tensors that `save_pretrained` writes; others of the same names can be given to it."""
        return merged_state(self.model) if has_lora(self.model) else self.model.state_dict()

    def save_pretrained(self, path: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the stock model: `AutoModelForSequenceClassification.from_pretrained(path)` needs no penstock.

        Adapters are added to the weights that they stand beside.

        Args:
            state_dict: tensors as of `saved_state`, by default those of now.
        """
        with quiet():
            self.model.save_pretrained(path, state_dict=self.saved_state() if state_dict is None else state_dict)

    def unmerged_state(self) -> dict[str, Tensor] | None:
        """What training goes on from where `save_pretrained` cannot give it back: the weights beside their adapters."""
        return self.state_dict() if has_lora(self.model) else None

    def forward(
        self,
        input_ids: Ragged | Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        reduction: str = "mean",
    ) -> SequenceClassifierOutput:
        """Classifies a batch of texts.

        Args:
            input_ids: token ids: a `Ragged` of (total_tokens,), or padded, (batch, length).
            attention_mask: (batch, length), nonzero where a token is; with padded input only.
            labels: integer, (batch,), or 0 and 1, (batch, num_labels), of a multi-label model.
            token_type_ids: in the form of input_ids, (batch, length) or (total_tokens,), for models that have them;
                zeros if None.
            reduction: of the loss over the batch: "mean", "sum" or "none".
        Returns:
            logits (batch, num_labels) and, given labels, the loss. A text without tokens, which has no first token, has
            the logits of a zero vector.
        Raises:
            TypeError, ValueError: the input is neither form, the mask does not fit it, or no text has a token.
            ModelError: a sequence is longer than the model has positions for, or another attention has been set.
        """
        batch = as_ragged(input_ids, attention_mask)
        texts, tokens = batch.batch_size, batch.values.shape[0]
        if texts == 0:
            # a process of several whose share of a step is empty
            assert self.config.num_labels is not None
            none = torch.zeros(0, self.config.num_labels, device=batch.values.device)
            return classifier_output(none, labels, reduction, is_multi_label(self))
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
            batch = _rounded(batch, min(_TOKENS, self.max_length))
        inputs: dict[str, Any] = {"input_ids": batch.values[None], **bounds(batch)}
        inputs["position_ids"] = positions(batch, self._padding_idx())[None]
        if token_type_ids is not None:
            types = token_type_ids.flatten() if attention_mask is None else token_type_ids[attention_mask != 0]
            if types.shape[0] != tokens:
                raise ValueError(f"token_type_ids has shape {tuple(token_type_ids.shape)}, unlike input_ids")
            inputs["token_type_ids"] = F.pad(types, (0, batch.values.shape[0] - tokens))[None]
        return classifier_output(self.model(**inputs).logits[:texts], labels, reduction, is_multi_label(self))

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
                f"{self.max_length}; cut the texts (--max-length {self.max_length})"
            )


def _rounded(batch: Ragged, longest: int) -> Ragged:
    """The batch, followed by filler texts, none longer than `longest`, that round its sizes up."""
    texts, tokens = batch.batch_size, batch.values.shape[0]
    extra = -tokens % _TOKENS
    more = -(-extra // longest)
    return filled_up(batch, tokens + extra, texts + more + -(texts + more) % _TEXTS, longest)


def _pool(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """What the layers give, (1, total_tokens, width), or (batch, 1, width) of first tokens alone -> (batch, 1, width).

    Each sequence's first token, or its mean, of which the stock head takes the mean; zero for an empty sequence.
    """
    hidden, cu_seqlens = output.last_hidden_state, kwargs["cu_seq_lens_k"]
    if pools_mean(getattr(module, "config", None)):
        pooled = segment_pool(hidden[0], cu_seqlens, "mean")[:, None]
    else:
        lengths = cu_seqlens.diff()
        is_pooled = hidden.shape[1] == 1 and hidden.shape[0] == lengths.shape[0]
        first = hidden if is_pooled else first_tokens(hidden[0], kwargs)[0][:, None]
        pooled = first.masked_fill((lengths == 0)[:, None, None], 0)
    output.last_hidden_state = pooled
    return output

"""A pretrained transformers encoder for sequence classification, run without padding."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from penstock.engine.errors import ModelError
from penstock.engine.models.architectures import layers_of, pools_mean
from penstock.engine.models.bridge import first_tokens
from penstock.engine.models.encoder_body import EncoderBody, load_stock
from penstock.engine.models.fuse import is_fused
from penstock.engine.models.loading import quiet
from penstock.engine.models.lora import has_lora, merged_state
from penstock.engine.models.output import classifier_output, is_multi_label
from penstock.engine.models.packed_steps import PackedSteps, forget, prepare, prepared
from penstock.engine.models.ragged_input import as_ragged
from penstock.engine.models.stock import has_hooks, only_looks_up
from penstock.kernels import Ragged, segment_pool
from penstock.kernels.autocast import autocast_dtype
from penstock.kernels.packing import check_asked


class EncoderClassifier(EncoderBody):
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
        super().__init__(model, _pool, first_only=True)

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
        return cls(load_stock(AutoModelForSequenceClassification, name, config, whole=whole))

    def prepare_inference(self, dtype: torch.dtype | None = None) -> "EncoderClassifier":
        """Keeps the weights of the layers as the C++ kernels read them, for calls without gradients.

        train(), load_state_dict() and whatever moves or converts the parameters undo it; copies and pickles are without
        it. A weight that has changed is packed again at the next call, as of `LSTM.prepare_inference`.

        Args:
            dtype: None, to compute as before, with the same results up to rounding. torch.bfloat16, to compute in it
                whatever the weights' dtype; logits stay in the dtype that they had. torch.int8, to multiply in whole
                numbers of 8 bits, with a scale for each row of the layers' weights and of what they multiply, and
                compute the rest (attention, norms, embeddings, the head) as before.

        Calls that record gradients or are traced, compiled or transformed, and layers with hooks, take the weights
        themselves; with a dtype they raise RuntimeError.

        Returns:
            The model.

        Raises:
            RuntimeError: the model is in training.
            ValueError: another dtype, or the weights cannot be packed: another device, adapters, weights that are
                computed (parametrizations, pruning), another backend; weights that are not finite in int8.
        """
        check_asked(self, dtype)
        prepare(layers_of(self.model), dtype)
        return self

    @property
    def prepared(self) -> PackedSteps | None:
        """How the first layer's weights are kept packed, None if they are not."""
        return prepared(layers_of(self.model)[0])

    def train(self, mode: bool = True) -> "EncoderClassifier":
        if mode:
            forget(layers_of(self.model))
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        forget(layers_of(self.model))
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        forget(layers_of(self.model))
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        return "" if self.prepared is None else f"prepared={self.prepared}"

    def looked_up(self) -> Tensor | None:
        """The table of the token embeddings, as `LSTMClassifier.looked_up`; the tokens that fill a batch up to a round
        size have no gradient.

        None where something else than a look-up may stand on it, or may change the ids.
        """
        table: Any = self.get_input_embeddings()
        base: Any = self.model.base_model
        above = (self, self.model, base, base.embeddings)
        plain = is_fused(table) and only_looks_up(table) and not has_hooks(table)
        plain &= not any(module._forward_pre_hooks for module in above)
        return table.weight if plain and not table.weight._backward_hooks else None

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
        texts = batch.batch_size
        if texts == 0:
            # a process of several whose share of a step is empty
            assert self.config.num_labels is not None
            none = torch.zeros(0, self.config.num_labels, device=batch.values.device)
            return classifier_output(none, labels, reduction, is_multi_label(self))
        if token_type_ids is not None:
            given = tuple(token_type_ids.shape)
            token_type_ids = token_type_ids.flatten() if attention_mask is None else token_type_ids[attention_mask != 0]
            if token_type_ids.shape[0] != batch.values.shape[0]:
                raise ValueError(f"token_type_ids has shape {given}, unlike input_ids")
        if self.prepared is not None and self.prepared.dtype == torch.bfloat16:
            weight = next(self.model.parameters())
            dtype = autocast_dtype(weight) or weight.dtype
            with torch.autocast("cpu", torch.bfloat16):
                logits = self._run(batch, token_type_ids).logits[:texts].to(dtype)
        else:
            logits = self._run(batch, token_type_ids).logits[:texts]
        return classifier_output(logits, labels, reduction, is_multi_label(self))


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

"""A fine-tuned encoder as ONNX, by torch's exporter from the stock model that the run has saved."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from penstock.engine.export.graph import BATCH, LENGTH
from penstock.engine.models.architectures import max_length
from penstock.engine.models.loading import as_model_error, quiet


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def encoder_graph(folder: Path, inputs: Sequence[str]) -> onnx.ModelProto:
    """Padding stands to the right of a text, as the stock model has it.

    Args:
        folder: of the saved model, adapters merged. inputs: input_ids, attention_mask and, perhaps, token_type_ids.
    """
    with quiet(), as_model_error(folder):
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )
    longest = max_length(model.config)
    ids = torch.ones(2, min(7, longest), dtype=torch.int64)
    mask = ids.clone()
    mask[1, 1:] = 0
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    sizes = {0: torch.export.Dim(BATCH), 1: torch.export.Dim(LENGTH, max=longest)}
    with unheard():
        program = torch.onnx.export(
            _Logits(model.eval()),
            kwargs={name: example[name] for name in inputs},
            dynamic_shapes=dict.fromkeys(inputs, sizes),
            input_names=list(inputs),
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def unheard() -> Iterator[None]:
    """Without an exporter's remarks, which are on itself, on torchvision and on what it leaves as it is."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

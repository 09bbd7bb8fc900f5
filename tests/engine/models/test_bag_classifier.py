"""The bag of n-grams as a module: the ids that it takes, and what torch makes of it and of the LSTM beside it."""

import copy
from typing import Any

import pytest
import torch
from subtested import as_subtests
from torch import Tensor, nn

from penstock.engine.models import BagClassifier, BagClassifierConfig, LSTMClassifier, LSTMClassifierConfig
from penstock.kernels import Ragged

VOCABULARY = 20


def bag() -> BagClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "buckets": 32, "num_labels": 3, "embedding_size": 7}
    model = BagClassifier(BagClassifierConfig(**sizes))
    nn.init.normal_(model.embeddings.weight)
    return model.eval()


def lstm() -> LSTMClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "embedding_size": 5, "hidden_size": 4, "num_labels": 3}
    return LSTMClassifier(LSTMClassifierConfig(**sizes)).eval()


MODELS = {"bag": bag, "lstm": lstm}
PADDED = torch.tensor([[1, 2, 3], [4, 5, 6]])
FORMS = {"padded": lambda ids: ids, "ragged": lambda ids: Ragged.from_lengths(ids.flatten(), [2, 4])}
OUTSIDE = [-1, VOCABULARY, VOCABULARY + 32, 2**31 + 1, 2**32 + 1, -(2**32) + 1, 2**63 - 1]
NO_IDS = [torch.bool, torch.uint8, torch.int16, torch.float32, torch.float64, torch.complex64]


@as_subtests("name, form, wrong", [(n, f, w) for n in MODELS for f in FORMS for w in OUTSIDE])
def test_an_id_outside_the_vocabulary_is_an_error(name: str, form: str, wrong: int) -> None:
    ids = PADDED.clone()
    ids[1, 0] = wrong
    with pytest.raises(IndexError):
        MODELS[name]()(FORMS[form](ids))


@as_subtests("name, form, dtype", [(n, f, d) for n in MODELS for f in FORMS for d in NO_IDS])
def test_ids_are_integers(name: str, form: str, dtype: torch.dtype) -> None:
    model, take = MODELS[name](), FORMS[form]
    assert torch.equal(model(take(PADDED)).logits, model(take(PADDED.int())).logits)
    with pytest.raises(TypeError, match="token ids must be int32 or int64"):
        model(take(PADDED.to(dtype)))


def test_a_compiled_model_learns_the_same() -> None:
    torch._dynamo.reset()
    mine = bag().train()
    theirs = copy.deepcopy(mine)
    losses: list[list[float]] = []
    for model, call in ((mine, mine), (theirs, torch.compile(theirs, backend="aot_eager"))):
        generator, optimizer = torch.Generator().manual_seed(1), torch.optim.SGD(model.parameters(), lr=0.5)
        losses.append([])
        for step in range(4):
            ids = torch.randint(VOCABULARY, (9 + step,), generator=generator)
            loss = call(Ragged.from_lengths(ids, [4, 5 + step]), labels=torch.tensor([0, 1])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]


class Logits(nn.Module):
    """For tools that take tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Tensor | None = None) -> Tensor:
        return self.model(ids, mask).logits


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_exports_whole_rows_of_any_size_and_ragged_batches(name: str, strict: bool) -> None:
    module, other = Logits(MODELS[name]()), torch.arange(15).view(3, 5)
    sizes = {"ids": dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)}
    program = torch.export.export(module, (PADDED,), dynamic_shapes=sizes, strict=strict)
    torch.testing.assert_close(program.module()(other), module(other))
    ragged = FORMS["ragged"](PADDED)
    program = torch.export.export(module, (ragged,), strict=strict)
    torch.testing.assert_close(program.module()(ragged), module(ragged))


@pytest.mark.parametrize("name", MODELS)
def test_export_of_a_mask_says_what_to_do(name: str) -> None:
    with pytest.raises(RuntimeError, match="penstock export onnx"):
        torch.export.export(Logits(MODELS[name]()), (PADDED, torch.ones_like(PADDED)), strict=False)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_traces(masked: bool) -> None:
    module, other = Logits(bag()), torch.arange(15).view(3, 5)
    masks = [torch.ones_like(PADDED), torch.arange(5) < torch.tensor([[5], [1], [3]])] if masked else []
    with torch.no_grad():
        traced = torch.jit.trace(module, (PADDED, *masks[:1]))
        torch.testing.assert_close(traced(other, *masks[1:]), module(other, *masks[1:]))

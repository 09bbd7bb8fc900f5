"""Answers of an encoder from weights that stay packed: the weights' of that moment, in the dtype that was asked for."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import isas, on_threads, pairwise
from subtested import as_subtests
from tiny_encoders import CONFIGS, VOCAB, stock_model
from torch import Tensor
from torch.nn.utils import parametrize, prune

from penstock.engine.models import EncoderClassifier
from penstock.engine.models.architectures import layers_of
from penstock.engine.models.fuse import unfuse
from penstock.kernels import Ragged, use_backend

LENGTHS = [7, 1, 13, 2, 31]
BATCH = Ragged.from_lengths(
    torch.randint(3, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1), dtype=torch.int32), LENGTHS
)
ISAS, DTYPES = isas("linear"), [None, torch.bfloat16, torch.int8]
# of the logits' norm, of tiny random models: bfloat16 has 8 bits, and int8 7 in each of two factors
FAR = {None: 1e-5, torch.bfloat16: 3e-2, torch.int8: 8e-2}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PENSTOCK_ISA", request.param)
    return request.param


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(name: str = "bert") -> EncoderClassifier:
    return EncoderClassifier(stock_model(name)).eval()


def answers(model: EncoderClassifier, batch: Ragged = BATCH) -> Tensor:
    with torch.no_grad():
        return model(batch).logits


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pairwise({"isa": ISAS, "name": list(CONFIGS), "dtype": DTYPES})
def test_the_same_answers_up_to_the_dtype(isa, name, dtype) -> None:
    model = model_of(name)
    expected = answers(model)
    found = answers(model.prepare_inference(dtype))
    assert found.dtype == expected.dtype
    assert far(found, expected) < FAR[dtype]
    for layer in layers_of(model.model):
        assert vars(layer)["prepared"].bytes > 0
    if dtype is not None:
        assert not torch.equal(found, expected)


@as_subtests("name", CONFIGS)
def test_under_autocast(name: str) -> None:
    model = model_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        expected = answers(model)
        kept, quantised = answers(model.prepare_inference()), answers(model.prepare_inference(torch.int8))
    assert kept.dtype == quantised.dtype == expected.dtype
    assert far(kept.float(), expected.float()) < FAR[torch.bfloat16]
    assert far(quantised.float(), expected.float()) < FAR[torch.int8]


@pairwise({"isa": ISAS, "dtype": DTYPES})
def test_threads_change_no_bit(isa, dtype) -> None:
    model = model_of().prepare_inference(dtype)
    lengths = LENGTHS * 12
    batch = Ragged.from_lengths(BATCH.values.repeat(12), lengths)
    alone, *others = on_threads([1, 2, 5], lambda: [answers(model, batch)])
    assert all(torch.equal(other[0], alone[0]) for other in others)


def reloaded(model: EncoderClassifier) -> EncoderClassifier:
    model.load_state_dict(model.state_dict())
    return model


def saved(model: EncoderClassifier) -> EncoderClassifier:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


UNDONE: dict[str, Callable[[EncoderClassifier], EncoderClassifier]] = {
    "train": lambda model: model.train().eval(),
    "load_state_dict": reloaded,
    "to": lambda model: model.double().float(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@as_subtests("how", UNDONE)
def test_is_undone_by(how: str) -> None:
    model = model_of()
    expected = answers(model)
    model.prepare_inference(torch.int8)
    assert "prepared=int8" in repr(model)
    names = list(model.state_dict())
    other = UNDONE[how](model)
    assert other.prepared is None
    assert "prepared" not in repr(other)
    assert list(other.state_dict()) == names
    assert torch.equal(answers(other), expected)
    other.prepare_inference()
    assert far(answers(other), expected) < FAR[None]


def test_layers_that_are_not_fused_pack_nothing() -> None:
    model = model_of()
    expected = answers(model)
    unfuse(model.prepare_inference(torch.int8).model)
    assert model.prepared is None
    torch.testing.assert_close(answers(model), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="packs no weights here: its layers are not fused"):
        model.prepare_inference()


def test_what_is_saved_is_as_without(tmp_path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path / "plain")
    answers(model.prepare_inference(torch.int8))
    model.save_pretrained(tmp_path / "prepared")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "prepared"))
    assert one == other


@as_subtests("dtype", DTYPES)
def test_changes_are_seen(dtype: torch.dtype | None) -> None:
    for change in (
        lambda weight: weight.mul_(1.5),
        lambda weight: weight.data.mul_(1.5),
        lambda weight: weight.detach().numpy().__imul__(1.5),
        lambda weight: setattr(weight, "data", weight * 1.5),
    ):
        model = model_of().prepare_inference(dtype)
        before = answers(model)
        with torch.no_grad():
            for layer in layers_of(model.model):
                change(layer.output.dense.weight)
        found = answers(model)
        assert not torch.equal(found, before)
        assert torch.equal(found, answers(model.prepare_inference(dtype)))


def test_another_instruction_set_is_seen(monkeypatch) -> None:
    model = model_of().prepare_inference(torch.int8)
    answers(model)
    monkeypatch.setenv("PENSTOCK_ISA", "portable")
    assert torch.equal(answers(model), answers(model.prepare_inference(torch.int8)))


def hooked(model: EncoderClassifier) -> None:
    layers_of(model.model)[1].output.dense.register_forward_hook(lambda module, inputs, output: output * 2)


def own_forward(model: EncoderClassifier) -> None:
    dense = layers_of(model.model)[0].intermediate.dense
    dense.forward = lambda x: torch.nn.functional.linear(x, dense.weight)


def pruned(model: EncoderClassifier) -> None:
    prune.l1_unstructured(layers_of(model.model)[0].output.dense, "weight", amount=0.5)


def parametrized(model: EncoderClassifier) -> None:
    class Twice(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(layers_of(model.model)[0].output.dense, "weight", Twice())


ON_LAYERS = {each.__name__: each for each in (hooked, own_forward, pruned, parametrized)}


@as_subtests("what", ON_LAYERS)
def test_what_stands_on_a_layer_takes_effect(what: str) -> None:
    """Where nothing was asked for but speed; a dtype that such a layer would not answer in is an error."""
    model, prepared, quantised = (model_of() for _ in range(3))
    prepared.prepare_inference()
    quantised.prepare_inference(torch.int8)
    for each in (model, prepared, quantised):
        ON_LAYERS[what](each)
    assert far(answers(prepared), answers(model)) < FAR[None]
    with pytest.raises(RuntimeError, match="prepared to answer in int8, which this call cannot: something else"):
        answers(quantised)


@as_subtests("what", {"pruned": pruned, "parametrized": parametrized})
def test_computed_weights_are_refused(what: str) -> None:
    model = model_of()
    ON_LAYERS[what](model)
    for dtype in DTYPES:
        with pytest.raises(ValueError, match="prepare_inference packs no weights here: a weight is no parameter"):
            model.prepare_inference(dtype)
        assert model.prepared is None


def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    stock = stock_model("bert")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query"], r=2), stock)
    with pytest.raises(ValueError, match="packs no weights here: it has adapters"):
        EncoderClassifier(stock).eval().prepare_inference()


def test_gradients_training_and_backends() -> None:
    plain, model = model_of(), model_of()
    torch.testing.assert_close(model.prepare_inference()(BATCH).logits, plain(BATCH).logits)
    assert model(BATCH).logits.requires_grad
    model.prepare_inference(torch.int8)
    with pytest.raises(RuntimeError, match="prepared to answer in int8, which this call cannot: it records gradients"):
        model(BATCH)
    layers_of(model.model)[0].train()
    with pytest.raises(RuntimeError, match="which this call cannot: a layer is in training"):
        answers(model)
    with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
        model.train().prepare_inference()
    model.eval()
    with use_backend("torch"), pytest.raises(ValueError, match="packs no weights here: the backend is torch"):
        model.prepare_inference(torch.int8)
    model.prepare_inference(torch.int8)
    with use_backend("torch"), pytest.raises(RuntimeError, match="which this call cannot: the backend is torch"):
        answers(model)


def test_meta_and_float64() -> None:
    with pytest.raises(ValueError, match="the weights are on meta"):
        EncoderClassifier(stock_model("bert").to("meta")).eval().prepare_inference()
    model = model_of().double().eval()
    expected = answers(model)
    assert torch.equal(answers(model.prepare_inference()), expected)
    with pytest.raises(RuntimeError, match="it computes in float64 on cpu"):
        answers(model.prepare_inference(torch.int8))


@as_subtests("dtype", [torch.float16, torch.float32, "int8"])
def test_another_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"prepare_inference takes None, torch\.bfloat16, torch\.int8, got"):
        model_of().prepare_inference(dtype)


@as_subtests("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model = model_of()
    with torch.no_grad():
        layers_of(model.model)[1].output.dense.weight[3, 2] = value
    with pytest.raises(ValueError, match="int8 takes finite weights"):
        model.prepare_inference(torch.int8)
    assert model.prepared is None
    model.prepare_inference()


def test_texts_without_tokens() -> None:
    model = model_of()
    batch = Ragged.from_lengths(torch.tensor([5, 6, 7], dtype=torch.int32), [0, 3, 0])
    expected = answers(model, batch)
    for dtype in DTYPES:
        assert far(answers(model.prepare_inference(dtype), batch), expected) < FAR[dtype]


def test_compiled_and_transformed_calls_take_the_weights_themselves() -> None:
    model = model_of()
    expected = answers(model)
    layers = layers_of(model.model)

    def under_a_mode() -> Tensor:
        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return function(*args, **(kwargs or {}))

        with Mode():
            return answers(model)

    model.prepare_inference()
    assert torch.equal(under_a_mode(), expected)
    assert vars(layers[0])["prepared"].bytes == 0
    model.prepare_inference(torch.int8)
    with pytest.raises(RuntimeError, match="which this call cannot: it is traced, compiled, transformed or watched"):
        under_a_mode()

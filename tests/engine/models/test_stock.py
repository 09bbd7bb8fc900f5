"""Whatever stands on a module of a classifier takes effect, as in the stock model that runs without fusion."""

import copy
import functools
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing
from spawned import serve
from subtested import as_subtests
from tiny_encoders import CONFIGS, VOCAB, stock_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from penstock.engine.errors import ModelError
from penstock.engine.models import EncoderClassifier, LSTMClassifier, LSTMClassifierConfig
from penstock.engine.models.architectures import layers_of
from penstock.engine.models.fuse import _ARCHITECTURES, is_fused, unfuse
from penstock.engine.models.stock import is_made_of
from penstock.kernels import LSTM, Ragged

LENGTHS = [7, 1, 13, 2]
LABEL = torch.tensor([0, 1, 2, 1])
BATCH = Ragged.from_lengths(
    torch.randint(3, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1), dtype=torch.int32), LENGTHS
)

Change = Callable[[nn.Module, str], Any]


def scaled(value: Any) -> Any:
    """Its tensors, or those of a tuple, changed so that no norm hides it."""
    if isinstance(value, tuple):
        return tuple(map(scaled, value))
    return (
        value * torch.linspace(0.5, 1.5, value.shape[-1])
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
    )


def hook(parent: nn.Module, name: str) -> Any:
    return getattr(parent, name).register_forward_hook(lambda _, __, output: scaled(output))


def pre_hook(parent: nn.Module, name: str) -> Any:
    return getattr(parent, name).register_forward_pre_hook(lambda _, args: tuple(map(scaled, args)))


def backward_hook(parent: nn.Module, name: str) -> Any:
    return getattr(parent, name).register_full_backward_hook(lambda _, grads, __: scaled(grads))


def backward_pre_hook(parent: nn.Module, name: str) -> Any:
    return getattr(parent, name).register_full_backward_pre_hook(lambda _, grads: scaled(grads))


def own_forward(parent: nn.Module, name: str) -> None:
    module = getattr(parent, name)
    before = module.forward
    module.forward = lambda *args, **kwargs: scaled(before(*args, **kwargs))


def subclass(parent: nn.Module, name: str) -> None:
    module = copy.copy(getattr(parent, name))
    vars(module).pop("forward", None)

    class Other(type(module)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return scaled(super().forward(*args, **kwargs))

    module.__class__ = Other
    setattr(parent, name, module)


def wrapped(parent: nn.Module, name: str) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return scaled(self.inner(*args, **kwargs))

    setattr(parent, name, Wrapper(getattr(parent, name)))


ON_ANY = [hook, pre_hook, backward_hook, backward_pre_hook, own_forward, subclass, wrapped]


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Doubling(Tensor):
    """A weight that is more than its numbers, as a quantized one is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [arg.as_subclass(Tensor) if isinstance(arg, Doubling) else arg for arg in args]
        output = func(*plain, **(kwargs or {}))
        return output * 2 if func is nn.functional.linear else output


def parametrized(parent: nn.Module, name: str) -> None:
    parametrize.register_parametrization(getattr(parent, name), "weight", Halved())


def old_weight_norm(parent: nn.Module, name: str) -> None:
    module = nn.utils.weight_norm(getattr(parent, name))
    module.weight_g.data *= 1.5


def weight_norm(parent: nn.Module, name: str) -> None:
    module = parametrizations.weight_norm(getattr(parent, name))
    module.parametrizations.weight.original0.data *= 1.5


def old_spectral_norm(parent: nn.Module, name: str) -> None:
    module = nn.utils.spectral_norm(getattr(parent, name)).train()
    for _ in range(15):  # the norm is found by iteration: from its first, random guess the weights are ill-conditioned
        module(torch.zeros(1, module.in_features))
    module.eval()


def spectral_norm(parent: nn.Module, name: str) -> None:
    parametrizations.spectral_norm(getattr(parent, name))


def pruned(parent: nn.Module, name: str) -> None:
    module = getattr(parent, name)
    prune.l1_unstructured(module, "weight", 0.5)
    module.weight_orig.data *= 1.5  # weight is made of it by the next call


def quantized(parent: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = nn.Sequential(getattr(parent, name)).eval()
        setattr(parent, name, torch.ao.quantization.quantize_dynamic(part, {nn.Linear})[0])


def tensor_subclass(parent: nn.Module, name: str) -> None:
    module = getattr(parent, name)
    module._parameters["weight"] = module.weight.detach().as_subclass(Doubling)


def no_bias(parent: nn.Module, name: str) -> None:
    getattr(parent, name).bias = None


ON_LINEAR = [parametrized, old_weight_norm, weight_norm, old_spectral_norm, spectral_norm, pruned]
ON_LINEAR += [quantized, tensor_subclass, no_bias]


def results(model: nn.Module) -> list[Tensor]:
    """Logits and every gradient."""
    model.zero_grad()
    torch.manual_seed(3)
    with torch.random.fork_rng():
        output = model(BATCH, labels=LABEL)
        output.loss.backward()
    return [output.logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """By the size of each, and of the whole gradient where one is rounding alone, as a key's bias's is."""
    total = torch.stack([other.norm() for other in others]).norm()
    return len(some) == len(others) and all(
        a.shape == b.shape and (a - b).norm() <= 1e-4 * b.norm().clamp(min=0.01 * total)
        for a, b in zip(some, others, strict=True)
    )


def parts_of(model: EncoderClassifier, change: Change) -> Iterator[str]:
    """Names of all modules of the last layer and of those that look tokens up, and of what differs in the first layer.

    A hook is put on those of the first one as well.
    """
    inner = model.model
    layers: Any = layers_of(inner)
    names = {id(module): name for name, module in inner.named_modules()}
    found = [*layers[-1].modules(), *inner.base_model.embeddings.modules()]
    kinds = [type(module) for module in layers[-1].modules()]
    for module, kind in itertools.zip_longest(layers[0].modules(), kinds):
        if change is hook or type(module) is not kind:
            found.append(module)
    for module in found:
        if change in ON_ANY or type(module) is nn.Linear:
            yield names[id(module)]


@functools.cache
def quiet_model(architecture: str) -> EncoderClassifier:
    """Two layers, in evaluation: nothing is dropped, and spectral_norm stays what it is from call to call."""
    layers = {"n_layers" if architecture == "distilbert" else "num_hidden_layers": 2}
    return EncoderClassifier(stock_model(architecture, **layers))


def changed(architecture: str, name: str, change: Change) -> EncoderClassifier:
    model = copy.deepcopy(quiet_model(architecture))
    path, _, last = name.rpartition(".")
    change(model.model.get_submodule(path), last)
    return model


# each change on one architecture in turn; on the others it is slow
CHANGES = [
    pytest.param(
        architecture,
        change,
        id=f"{architecture}-{change.__name__}",
        marks=() if (number + turn) % 3 == 0 else pytest.mark.slow,
    )
    for turn, architecture in enumerate(("bert", "distilbert", "modernbert"))
    for number, change in enumerate((*ON_ANY, *ON_LINEAR))
    if (architecture, change) != ("modernbert", no_bias)  # it has no biases to begin with
]


@pytest.mark.parametrize(("architecture", "change"), CHANGES)
def test_what_stands_on_a_module_takes_effect(architecture: str, change: Change) -> None:
    plain = changed(architecture, "classifier", lambda parent, name: None)
    expected = results(plain)
    effective = 0
    for name in parts_of(plain, change):
        found = changed(architecture, name, change)
        fused = results(found)
        unfuse(found.model)
        assert not any(map(is_fused, found.modules()))
        assert same(fused, results(found)), name
        effective += not same(fused, expected)
    assert effective >= (6 if change in ON_ANY else 4)  # some changes do nothing, such as hooks on an integer input


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert", "modernbert-mean"])
def test_hooks_on_every_module_fire_and_see_all_tokens(architecture: str) -> None:
    model = EncoderClassifier(stock_model(architecture))
    seen: dict[str, list[tuple]] = {}

    def look(name: str) -> Callable:
        return lambda _, __, output: seen.setdefault(name, []).append(
            tuple(getattr(output[0] if isinstance(output, tuple) else output, "shape", ()))
        )

    for name, module in model.named_modules():
        module.register_forward_hook(look(name))
    model(BATCH)
    fused, _ = dict(seen), seen.clear()
    unfuse(model.model)
    model(BATCH)
    assert fused == seen
    assert {name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.LayerNorm)} <= set(seen)
    layers = [name for name, module in model.named_modules() if module in list(layers_of(model.model))]
    assert {seen[name][0][:2] for name in layers} == {(1, 32)}  # 23 tokens, rounded up


def test_a_hook_on_a_layer_leaves_it_fused_and_the_last_ones_sees_all_tokens() -> None:
    model = EncoderClassifier(stock_model("bert"))
    expected = model(BATCH).logits
    shapes: list[torch.Size] = []
    for layer in layers_of(model.model):
        layer.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
        for part in layer.modules():  # a fused layer calls none of them
            vars(part)["_call_impl"] = None
        del vars(layer)["_call_impl"]
    torch.testing.assert_close(model(BATCH).logits, expected)
    assert {shape[:2] for shape in shapes} == {(1, 32)}


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_hooks_of_all_modules_fire(architecture: str) -> None:
    model = EncoderClassifier(stock_model(architecture))
    classes: list[list[str]] = []
    for takes_back in (False, True):
        if takes_back:
            unfuse(model.model)
        seen: list[str] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _, __, seen=seen: seen.append(type(module).__name__)
        )
        model(BATCH)
        handle.remove()
        classes.append(seen)
    assert classes[0] == classes[1]
    assert classes[0].count("Linear") > 12


@pytest.mark.parametrize("cls", [nn.Linear, nn.LayerNorm, nn.Dropout, nn.Embedding, "attention"], ids=str)
def test_a_forward_replaced_on_a_class_takes_effect(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EncoderClassifier(stock_model("bert"))
    expected = model(BATCH).logits
    cls = type(layers_of(model.model)[1].attention.self) if cls == "attention" else cls
    before = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, *args, **kwargs: scaled(before(self, *args, **kwargs)))
    fused = model(BATCH).logits
    assert not torch.allclose(fused, expected, atol=1e-3)
    unfuse(model.model)
    torch.testing.assert_close(model(BATCH).logits, fused)


def test_fusion_returns_when_what_stood_there_goes() -> None:
    model = EncoderClassifier(stock_model("bert"))
    expected = model(BATCH).logits
    handle = hook(layers_of(model.model)[1].output, "dense")
    assert not torch.equal(model(BATCH).logits, expected)
    handle.remove()
    assert torch.equal(model(BATCH).logits, expected)


def test_the_stock_parts_of_every_family_are_recognised() -> None:
    for name in CONFIGS:
        model = EncoderClassifier(stock_model(name))
        for layer in layers_of(model.model):
            dtypes: set[torch.dtype] = set()
            assert is_made_of(layer, _ARCHITECTURES[model.config.model_type].parts, dtypes), name
            assert dtypes == {torch.float32}


def test_a_mixture_of_dtypes_runs_as_the_stock_layer_does() -> None:
    model = EncoderClassifier(stock_model("bert"))
    layers_of(model.model)[1].output.dense.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):  # stock's own; the fused layer would cast
        model(BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        fused = model(BATCH).logits
        unfuse(model.model)
        torch.testing.assert_close(model(BATCH).logits, fused, rtol=0.05, atol=0.05)


def test_another_attention_is_refused() -> None:
    model = EncoderClassifier(stock_model("bert"))
    model.model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="knows no bounds between texts"):
        model(BATCH)


def lstm_classifier(pooling: str = "max") -> LSTMClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "embedding_size": 11, "hidden_size": 13, "num_labels": 3}
    return LSTMClassifier(LSTMClassifierConfig(**sizes, pooling=pooling, dropout=0.0, head_dropout=0.0))


ON_EMBEDDINGS = [hook, backward_pre_hook, own_forward, subclass, wrapped, parametrized]


@as_subtests("pooling, change", itertools.product(["max", "mean", "last", "attention"], ON_EMBEDDINGS))
def test_what_stands_on_an_lstms_embeddings_takes_effect(pooling: str, change: Change) -> None:
    model, plain = lstm_classifier(pooling), lstm_classifier(pooling)
    if change is backward_pre_hook:
        assert len(results(plain)) == len(results(model))
    elif change is parametrized:
        plain.embeddings.weight.data /= 2
    else:
        plain.embeddings.weight.data = scaled(plain.embeddings.weight.data)
    change(model, "embeddings")
    if change is backward_pre_hook:
        expected = {name: p.grad for name, p in plain.named_parameters()}
        expected["embeddings.weight"] = scaled(expected["embeddings.weight"])
        results(model)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])
        return
    torch.testing.assert_close(model(BATCH).logits, plain(BATCH).logits)


@as_subtests("setting", [{"padding_idx": 5}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}, {"sparse": True}])
def test_an_lstms_embeddings_keep_their_settings(setting: dict) -> None:
    model = lstm_classifier()
    table = nn.Embedding(VOCAB, 11, _weight=model.embeddings.weight.detach().clone() * 3, **setting)
    model.set_input_embeddings(table)
    values = torch.full((9,), 5, dtype=torch.int32)
    values[::2] = 7
    model(Ragged.from_lengths(values, [4, 5])).logits.sum().backward()
    hidden, _ = model.lstm(Ragged.from_lengths(table(values), [4, 5]))
    expected = nn.Embedding(VOCAB, 11, _weight=table.weight.detach().clone(), **setting)
    pooled = torch.stack(
        [part.amax(0) for part in model.lstm(Ragged.from_lengths(expected(values), [4, 5]))[0].values.split([4, 5])]
    )
    model.classifier(pooled).sum().backward()
    gradient, other = (g.weight.grad.to_dense() for g in (table, expected))
    torch.testing.assert_close(gradient, other)
    assert hidden.values.shape == (9, 26)
    assert (gradient[5] == 0).all() == ("padding_idx" in setting)


@pytest.mark.parametrize("pooling", ["max", "mean", "last", "attention"])
def test_hooks_on_an_lstm_see_what_goes_in_and_comes_out(pooling: str) -> None:
    model = lstm_classifier(pooling)
    expected = model(BATCH).logits
    seen = []

    def look(_: nn.Module, args: tuple, output: tuple) -> tuple:
        seen.append((args[0].values.shape, output[0].values.shape))
        return output[0].with_values(output[0].values * 2), *output[1:]

    model.lstm.register_forward_hook(look)
    found = model(BATCH).logits
    assert seen == [((sum(LENGTHS), 11), (sum(LENGTHS), 26))]
    if pooling in ("max", "mean"):
        bias = model.classifier.bias
        torch.testing.assert_close(found - bias, 2 * (expected - bias), rtol=1e-4, atol=1e-5)


def test_an_lstm_of_another_class_is_called_plainly() -> None:
    class Plain(LSTM):
        def forward(self, input: Ragged, hx: Any = None) -> Any:  # type: ignore[override]
            return super().forward(input, hx)

    model = lstm_classifier().eval()
    expected = model(BATCH).logits
    model.lstm.__class__ = Plain
    torch.testing.assert_close(model(BATCH).logits, expected)


def made(kind: str) -> nn.Module:
    return lstm_classifier() if kind == "lstm" else EncoderClassifier(stock_model(kind))


def by_torch(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


KINDS = ["lstm", "bert", "roberta", "distilbert", "modernbert", "modernbert-mean"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [by_torch, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_classifier_is_saved_and_copied_whole(kind: str, copied: Callable) -> None:
    model = made(kind).eval()
    again = copied(model)
    assert torch.equal(again(BATCH).logits, model(BATCH).logits)
    assert sum(map(is_fused, again.modules())) == sum(map(is_fused, model.modules()))
    with torch.no_grad():  # its own parameters, not the first one's
        for parameter in again.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(again(BATCH).logits, model(BATCH).logits)


@pytest.mark.slow
def test_classifiers_are_passed_to_a_spawned_process() -> None:
    models = [made(kind).eval() for kind in ("lstm", "bert", "modernbert-mean")]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=serve, args=(models, BATCH, queue))
    process.start()
    found = [queue.get(timeout=120) for _ in models]
    process.join()
    assert process.exitcode == 0
    with torch.no_grad():
        for model, answers in zip(models, found, strict=True):
            for logits in answers:
                torch.testing.assert_close(torch.tensor(logits), model(BATCH).logits)

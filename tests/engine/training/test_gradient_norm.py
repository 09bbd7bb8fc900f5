"""The norm of the gradients, and clipping by it: what torch's own functions make of them, in less time."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.models import EncoderClassifier, build_model
from penstock.engine.models.settings import ModelSettings
from penstock.engine.training.distributed import World
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.step import Stepper, _looked_up, _norm_by_row
from penstock.kernels import Ragged

CPU = torch.device("cpu")
MODELS = {
    "plain": {},
    "embedding dropout": {"embedding_dropout": 0.3},
    "frozen embeddings": {"frozen": True},
    "last": {"pooling": "last"},
    "bag": {"kind": "bag", "buckets": 64},
    "encoder": {"kind": "encoder"},
}


def steps_of(store, width):
    parameters = PlanParameters(tokens_per_batch=200, batches_per_step=width)
    return list(Loader(store, seed=0, parameters=parameters, rows=np.arange(60)))


def model_of(store, frozen=False, **settings):
    torch.manual_seed(0)
    if settings.get("kind") == "encoder":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = BertConfig(vocab_size=store.vocab_size, num_labels=store.num_labels, **sizes)
        return EncoderClassifier(BertForSequenceClassification(config))
    small = {} if settings.get("kind") == "bag" else {"hidden_size": 8}
    chosen = ModelSettings(embedding_size=8, **small, **settings)
    model = build_model(chosen, vocab_size=store.vocab_size, num_labels=store.num_labels)
    model.embeddings.weight.requires_grad_(not frozen)
    return model


def table_of(model):
    return model.get_input_embeddings() if isinstance(model, EncoderClassifier) else model.embeddings


def steps(model, taken, limit):
    stepper = Stepper(
        model, TrainingSettings(learning_rate=1e-2, max_steps=9, max_grad_norm=limit), "fp32", World(0, 1, CPU)
    )
    reports = [
        stepper(step.batches, step=number, num_examples=step.num_examples, learning_rate=1e-2)
        for number, step in enumerate(taken, 1)
    ]
    stepper.settle()
    return reports


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("limit", [0, 1e-3, 1e3])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bag"])
def test_it_is_torchs_own(store, monkeypatch, name, limit, width):
    """Beside a stepper that takes the norm of every gradient whole, and multiplies them."""
    ours = model_of(store, **MODELS[name])
    found = steps(ours, steps_of(store, width), limit)

    def plainly(self, model, *args, **rest):
        own(self, model, *args, **rest)
        self._looked_up, self._divides = None, False

    own = Stepper.__init__
    monkeypatch.setattr(Stepper, "__init__", plainly)
    theirs = model_of(store, **MODELS[name])
    expected = steps(theirs, steps_of(store, width), limit)
    assert [one.grad_norm for one in found] == pytest.approx([one.grad_norm for one in expected], rel=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-6)
    if limit == 1e-3:
        assert all(one.grad_norm > limit for one in found)  # it was clipped


@pytest.mark.parametrize("name", ["plain", "encoder"])
def test_rows_that_a_hook_puts_in_the_place_of_others_are_trained(store, name):
    model = model_of(store, **MODELS[name])
    before = table_of(model).weight.detach().clone()
    steps(model, steps_of(store, 1)[:1], 0)
    named = (table_of(model).weight - before).abs().amax(1) > 1e-3
    assert 0 < named.sum() < len(before) - 1
    model = model_of(store, **MODELS[name])
    last = len(before) - 1
    model.register_forward_pre_hook(lambda _, given: (given[0].with_values(torch.full_like(given[0].values, last)),))
    assert model.looked_up() is None
    steps(model, steps_of(store, 1)[:1], 0)
    found = (table_of(model).weight - before).abs().amax(1) > 1e-3
    assert found.nonzero()[:, 0].tolist() == [last]


@pytest.mark.parametrize("name", MODELS)
def test_only_rows_that_are_looked_up_are_read(store, name):
    model = model_of(store, **MODELS[name])
    looked_up = getattr(model, "looked_up", lambda: None)()
    assert (looked_up is None) == (name == "bag")
    if looked_up is not None:
        assert looked_up is table_of(model).weight


@pytest.mark.parametrize("name", ["plain", "encoder"])
@pytest.mark.parametrize(
    "put",
    [
        lambda table: table.register_forward_hook(lambda *given: None),
        lambda table: table.weight.register_hook(lambda gradient: gradient + 1),
        lambda table: torch.nn.utils.parametrizations.weight_norm(table),
    ],
    ids=["forward hook", "gradient hook", "parametrization"],
)
def test_all_rows_are_where_something_stands_on_the_table(store, put, name):
    model = model_of(store, **MODELS[name])
    put(table_of(model))
    assert model.looked_up() is None


def test_tokens_that_fill_an_encoders_batch_have_no_gradient(store):
    """They are token 0, which no text here has; with the gradient's norm they would count."""
    model = model_of(store, **MODELS["encoder"])
    tokens = Ragged.from_lengths(torch.arange(1, 8, dtype=torch.int32), [4, 3])
    model(tokens).logits.sum().backward()
    gradient = table_of(model).weight.grad
    assert gradient[1:8].any(1).all()
    assert not gradient[0].any()
    assert not gradient[8:].any()


def test_a_gradient_in_every_row_counts(store):
    """One that a hook has put there: the norm is of all of it."""
    taken = steps_of(store, 1)[:1]
    plain = model_of(store)
    (before,) = steps(plain, taken, 0)
    hooked = model_of(store)
    hooked.embeddings.weight.register_hook(lambda gradient: gradient + 1)
    (after,) = steps(hooked, taken, 0)
    assert after.grad_norm > before.grad_norm + hooked.embeddings.weight.numel() ** 0.5 / 2


@pytest.mark.parametrize("name", ["plain", "encoder"])
def test_whatever_else_makes_the_tables_gradient_counts(store, name):
    """A hook that writes to it when it is there; another module whose weight it is."""

    def add(parameter):
        parameter.grad.add_(0.01)

    def norms(change):
        model = model_of(store, **MODELS[name])
        change(model)
        (report,) = steps(model, steps_of(store, 1)[:1], 0)
        return report.grad_norm

    hooked = norms(lambda model: table_of(model).weight.register_post_accumulate_grad_hook(add))
    assert hooked == pytest.approx(norms(lambda model: table_of(model).weight.register_hook(lambda g: g + 0.01)))
    model = model_of(store, **MODELS[name])
    assert _looked_up(model)() is table_of(model).weight
    model.second = torch.nn.Embedding(1, 1)
    model.second.weight = table_of(model).weight
    assert _looked_up(model) is None


@pytest.mark.parametrize("rows", [1, 7, 1000, 5000])
@pytest.mark.parametrize("width", [1, 3, 64, 256])
def test_it_has_the_same_bits_whichever_rows_are_known(rows, width):
    """Several processes do not know the rows that the others looked up."""
    torch.manual_seed(rows * width)
    chosen = torch.randperm(5_000)[:rows].sort().values
    gradient = torch.zeros(5_000, width)
    gradient[chosen] = torch.randn(rows, width)
    more = torch.cat([chosen, torch.tensor([0, 4_999])]).unique()
    found = _norm_by_row(gradient, None)
    assert found == _norm_by_row(gradient, chosen) == _norm_by_row(gradient, more)
    assert found.item() == pytest.approx(gradient.double().norm().item(), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad):
    gradient = torch.zeros(10, 4)
    gradient[3, 1] = bad
    assert not torch.isfinite(_norm_by_row(gradient, torch.tensor([3])))
    assert not torch.isfinite(_norm_by_row(gradient, None))

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from penstock.engine.data.loader import Batch
from penstock.engine.errors import NonFiniteError
from penstock.engine.training.distributed import World
from penstock.engine.training.optimizer import build_optimizer
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.step import Stepper, derive_seed
from penstock.kernels import Ragged

ALONE = World(0, 1, torch.device("cpu"))


class Linear(nn.Module):
    """Logits of one-token texts: a row of a table, and a norm so that both groups of parameters are there."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, 15).view(5, 3))
        self.norm = nn.LayerNorm(3)
        self.seen = []

    def forward(self, tokens):
        self.seen.append(torch.rand(()).item())
        return SequenceClassifierOutput(logits=self.norm(self.table[tokens.values.long()]))


def batch(tokens, labels):
    values = torch.tensor(tokens, dtype=torch.int32)
    return Batch(Ragged.from_lengths(values, [1] * len(tokens)), torch.tensor(labels))


def settings(**changes):
    return TrainingSettings(**{"learning_rate": 0.1, "weight_decay": 0.5, **changes})


def test_the_same_step_by_plain_torch():
    model, plain = Linear(), Linear()
    stepper = Stepper(model, settings(max_grad_norm=0.01), "fp32", ALONE)
    optimizer = torch.optim.AdamW(
        [{"params": [plain.table], "weight_decay": 0.5}, {"params": plain.norm.parameters(), "weight_decay": 0.0}]
    )
    tokens, labels = [0, 1, 4, 2, 3], [0, 1, 2, 0, 1]
    for step in (1, 2, 3):
        report = stepper(
            [batch(tokens[:2], labels[:2]), batch(tokens[2:], labels[2:])],
            step=step,
            num_examples=5,
            learning_rate=0.1 / step,
        )
        loss = nn.functional.cross_entropy(plain(batch(tokens, labels).tokens).logits, torch.tensor(labels))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / step
        optimizer.step()
        optimizer.zero_grad()
        assert report.loss_sum / 5 == pytest.approx(loss.item(), rel=1e-6)
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 1.5]])
def test_the_step_is_that_of_torchs_weighted_mean_over_all_its_batches(weights, smoothing):
    model, plain = Linear(), Linear()
    weights = None if weights is None else torch.tensor(weights)
    stepper = Stepper(model, settings(max_grad_norm=0, label_smoothing=smoothing), "fp32", ALONE, weights)
    tokens, labels = [0, 1, 4, 2, 3], [0, 1, 2, 0, 1]
    report = stepper(
        [batch(tokens[:1], labels[:1]), batch(tokens[1:], labels[1:])],
        step=1,
        num_examples=5,
        learning_rate=0.1,
        weight=None if weights is None else float(weights[labels].sum()),
    )
    logits = plain(batch(tokens, labels).tokens).logits
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels), weight=weights, label_smoothing=smoothing)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in plain.parameters()])
    assert report.loss_sum / 5 == pytest.approx(loss.item(), rel=1e-6)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_vectors_are_not_decayed_and_frozen_weights_left_out():
    model = Linear()
    model.norm.bias.requires_grad_(False)
    decayed, plain = build_optimizer(model, learning_rate=1.0, weight_decay=0.5).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model.table)]
    assert [id(p) for p in plain["params"]] == [id(model.norm.weight)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


def test_random_numbers_depend_on_seed_step_and_place_alone():
    def seen(seed, steps):
        model = Linear()
        stepper = Stepper(model, settings(seed=seed), "fp32", ALONE)
        for step in steps:
            torch.rand(step)  # whatever happened before
            stepper([batch([0], [0]), batch([1], [1])], step=step, num_examples=2, learning_rate=0.1)
        return model.seen

    assert seen(0, [1, 2, 3])[4:] == seen(0, [3])
    assert seen(0, [3]) != seen(1, [3])
    assert len(set(seen(0, [1, 2, 3]))) == 6


def test_votes_are_counted():
    report = Stepper(Linear(), settings(), "fp32", ALONE)(
        [batch([0], [0])], step=1, num_examples=1, learning_rate=0.1, votes=(True, False)
    )
    assert report.votes == (True, False)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_the_weights_are_as_before_when_something_is_not_finite(bad):
    model = Linear()
    stepper = Stepper(model, settings(), "fp32", ALONE)
    stepper([batch([0], [0])], step=1, num_examples=1, learning_rate=0.1)
    if bad == "loss":
        with torch.no_grad():
            model.table[3] = float("inf")
    else:
        model.norm.weight.register_hook(lambda grad: grad * float("nan"))
    before = [parameter.clone() for parameter in model.parameters()]
    moments = [state["exp_avg"].clone() for state in stepper.state_dict()["optimizer"]["state"].values()]
    with pytest.raises(NonFiniteError, match=r"step 2: the (loss|gradient norm) is nan; the weights were not touched"):
        stepper([batch([3, 0], [0, 1])], step=2, num_examples=2, learning_rate=0.1)
    assert all(map(torch.equal, before, model.parameters()))
    after = [state["exp_avg"] for state in stepper.state_dict()["optimizer"]["state"].values()]
    assert all(map(torch.equal, moments, after))


def test_seeds_of_different_purposes_are_unrelated():
    seeds = {derive_seed(seed, name, step) for seed in range(10) for name in "ab" for step in range(10)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)

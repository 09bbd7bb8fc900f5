"""AdamW that leaves out rows of a table that no batch has looked up, against torch's own."""

import copy

import pytest
import torch
from torch import nn

from penstock.engine.training.table_adamw import TableAdamW

SETTINGS = {"lr": 1e-2, "weight_decay": 0.3, "fused": True}
ROWS, WIDTH = 40, 6


def model() -> nn.ParameterList:
    torch.manual_seed(0)
    return nn.ParameterList([torch.randn(ROWS, WIDTH), torch.randn(3), torch.randn(WIDTH, 2)])


def optimizers(parameters: nn.ParameterList, kind: type) -> torch.optim.Optimizer:
    table, vector, matrix = parameters
    return kind([{"params": [table, matrix]}, {"params": [vector], "weight_decay": 0.0, "lr": 3e-2}], **SETTINGS)


def train(parameters, optimizer, steps, settles=(), scale=None) -> None:
    """Steps that look up a few rows each; some of them have a gradient of zero."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        table = parameters[0]
        rows = (torch.rand(ROWS, generator=generator) < 0.08).nonzero()[:, 0]
        if isinstance(optimizer, TableAdamW):
            optimizer.look_up(table, rows)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        table.grad[rows] = torch.randn(len(rows), WIDTH, generator=generator)
        table.grad[rows[:1]] = 0.0
        for parameter in parameters[1:]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] *= 0.95
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale)
        optimizer.step()
        if step in settles:
            optimizer.settle()


@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("settles", [(), (4,), range(30)])
def test_it_is_torchs_own(settles, scale) -> None:
    ours, theirs = model(), model()
    own, torchs = optimizers(ours, TableAdamW), optimizers(theirs, torch.optim.AdamW)
    train(ours, own, range(12), settles, scale)
    train(theirs, torchs, range(12), scale=scale)
    seen = torchs.state[theirs[0]]["exp_avg_sq"].any(1)
    assert 0 < seen.sum() < ROWS
    found, expected = own.state_dict(), torchs.state_dict()
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-6)
    assert found["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        assert found["state"][number].keys() == state.keys()
        for name, true in state.items():
            torch.testing.assert_close(found["state"][number][name], true, rtol=1e-5, atol=1e-6)


def test_rows_that_were_not_looked_up_wait() -> None:
    ours = model()
    own = optimizers(ours, TableAdamW)
    before = ours[0].detach().clone()
    train(ours, own, range(3))
    changed = (ours[0] != before).any(1)
    assert 0 < changed.sum() < 15
    own.settle()
    assert (ours[0] != before).any(1).all()


@pytest.mark.parametrize("at", [3, 6, 9])
def test_going_on_from_a_state_makes_the_same_bits(at) -> None:
    """As never having stopped, whenever weights were read."""
    ours, weights = model(), model()
    own, stopped = optimizers(ours, TableAdamW), optimizers(weights, TableAdamW)
    train(ours, own, range(14), settles=(5,))
    train(weights, stopped, range(at))
    state = copy.deepcopy(stopped.state_dict())
    again = optimizers(weights, TableAdamW)
    again.load_state_dict(state)
    train(weights, again, range(at, 14))
    own.settle()
    again.settle()
    assert all(torch.equal(a, b) for a, b in zip(ours, weights, strict=True))


def test_torchs_state_is_read_and_read_by_torch() -> None:
    ours, theirs = model(), model()
    own, torchs = optimizers(ours, TableAdamW), optimizers(theirs, torch.optim.AdamW)
    train(theirs, torchs, range(5))
    ours.load_state_dict(theirs.state_dict())
    own.load_state_dict(copy.deepcopy(torchs.state_dict()))
    train(ours, own, range(5, 9))
    train(theirs, torchs, range(5, 9))
    own.settle()
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-6)


def test_a_row_whose_squares_are_too_small_to_be_seen_keeps_its_mean() -> None:
    """The same bits, whether weights were read after its first step or not."""
    found = []
    for settles in (True, False):
        parameters = model()
        own = optimizers(parameters, TableAdamW)
        for step in range(5):
            own.look_up(parameters[0], torch.tensor([step > 0]).long() + 1)
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            parameters[0].grad[1 + (step > 0)] = 1.0 if step else 3e-22
            own.step()
            if settles and not step:
                own.settle()
        found.append(own.state_dict()["state"][0]["exp_avg"][1])
    assert found[0].any()
    assert torch.equal(*found)


def test_a_gradient_of_a_row_that_was_not_named_is_seen() -> None:
    """At the first step, and from then on."""
    ours, theirs = model(), model()
    own, torchs = optimizers(ours, TableAdamW), optimizers(theirs, torch.optim.AdamW)
    for step in range(4):
        own.look_up(ours[0], torch.tensor([3]))
        for parameters, optimizer in ((ours, own), (theirs, torchs)):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            parameters[0].grad[[3, 20 + step]] = 1.0
            optimizer.step()
        own.settle()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


def test_step_hooks_run_once() -> None:
    parameters = model()
    optimizers(model(), torch.optim.AdamW)  # torch then has a hook of its own in AdamW.step
    own, seen = optimizers(parameters, TableAdamW), []
    own.register_step_post_hook(lambda *_: seen.append(parameters[0].grad is not None))
    train(parameters, own, range(3))
    assert seen == [True] * 3


def test_many_steps_without_a_look_are_made_up_for_on_the_way(monkeypatch) -> None:
    monkeypatch.setattr("penstock.engine.training.table_adamw._MOST_BEHIND", 4)
    ours, theirs = model(), model()
    own, other = optimizers(ours, TableAdamW), optimizers(theirs, TableAdamW)
    train(ours, own, range(13))
    assert len(own._behind) <= 4
    monkeypatch.undo()
    train(theirs, other, range(13))
    own.settle()
    other.settle()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

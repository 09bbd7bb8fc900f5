"""The benchmark `benchmarks/training/parity.py` on tiny models: losses as plain PyTorch's, step by step."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_encoders import LABELS, VOCAB, stock_model

STEPS = 12


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "training")
    return importlib.import_module("parity")


@pytest.fixture
def batches() -> list[tuple[list[torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def text() -> torch.Tensor:
        length = int(torch.randint(1, 38, (), generator=generator))
        return torch.randint(2, VOCAB, (length,), generator=generator)

    return [([text() for _ in range(6)], torch.randint(LABELS, (6,), generator=generator)) for _ in range(STEPS)]


def test_lstm_learns_as_the_plain_one(parity: ModuleType, batches: list) -> None:
    ours, theirs, turned = parity.lstm_losses(batches, VOCAB, LABELS, hidden_size=24)
    assert len(ours) == STEPS
    assert parity.difference(ours, theirs) < 1e-4
    assert parity.difference(turned, theirs) < 1e-4


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_encoder_learns_as_the_stock_one(name: str, parity: ModuleType, batches: list) -> None:
    ours, theirs = parity.encoder_losses(batches, stock_model(name))
    assert parity.difference(ours, theirs) < 1e-4
    assert parity.difference(ours, [ours[0]] * STEPS) > 1e-2  # it did learn

import json

import numpy as np
import pytest
import tiny_encoders
import torch
from subtested import as_subtests

from penstock.engine.models import EncoderClassifier, load_model
from penstock.engine.training.calibrate import CONFIG_ENTRY, fit_temperature, scale_logits
from penstock.engine.training.evaluate import evaluate
from penstock.engine.training.train import train
from penstock.kernels import Ragged


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_made_the_logits_is_found(temperature):
    random = np.random.default_rng(0)
    true = random.normal(size=(20_000, 4)) * 2
    shares = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = (shares.cumsum(1) < random.random((len(true), 1))).sum(1)
    found = fit_temperature((true * temperature).astype(np.float32), labels)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.loss_after <= found.loss_before
    assert found.error_after < 0.01


@pytest.mark.slow
@as_subtests("name", tiny_encoders.CONFIGS)
def test_every_architectures_saved_logits_are_divided_in_stock_transformers(tmp_path, name):
    from transformers import AutoModelForSequenceClassification

    stock = tiny_encoders.stock_model(name)
    tokens = torch.randint(5, 100, (1, 9))
    expected = stock(tokens).logits / 2.5
    stock.save_pretrained(tmp_path / "plain")
    model = EncoderClassifier.from_pretrained(tmp_path / "plain")
    scale_logits(model, 2.5)
    model.save_pretrained(tmp_path / "scaled")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scaled").eval()
    torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-4, atol=1e-5)
    assert getattr(again.config, CONFIG_ENTRY) == 2.5


@pytest.mark.slow
def test_a_calibrated_run(tmp_path, store, settings, capsys):
    """Only the best model is scaled, once: a run that is repeated or extended starts from what it trained."""
    chosen = ("training.calibrate=true", "training.precision=fp32")
    plain = train(settings("training.precision=fp32"), store, tmp_path / "plain", progress="none")
    result = train(settings(*chosen), store, tmp_path / "run", progress="plain")
    assert "calibrated: temperature" in capsys.readouterr().err
    found = result.calibration
    assert found.loss_before == pytest.approx(plain.validation.loss, rel=1e-4)
    assert found.loss_after <= found.loss_before
    assert result.validation == plain.validation
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"]["calibration"]["temperature"] == found.temperature
    batch = Ragged.from_lengths(torch.arange(5, 12, dtype=torch.int32), [3, 4])
    logits = {}
    for folder in ("plain", "plain/last", "run", "run/best", "run/last"):
        logits[folder] = load_model(tmp_path / folder).eval()(batch).logits.detach()
    for folder in ("run", "run/best"):
        torch.testing.assert_close(logits[folder], logits["plain"] / found.temperature, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits["run/last"], logits["plain/last"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())[CONFIG_ENTRY] == found.temperature
    # as if killed before the result was written
    record["status"] = "running"
    del record["crc32"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert train(settings(*chosen), store, tmp_path / "run", progress="none").calibration == found
    assert torch.equal(load_model(tmp_path / "run").eval()(batch).logits, logits["run"])
    longer = train(settings(*chosen, "training.epochs=6"), store, tmp_path / "run", progress="none")
    assert longer.calibration is not None
    assert evaluate(load_model(tmp_path / "run").eval(), store).num_examples == store.num_examples

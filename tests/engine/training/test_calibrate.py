import itertools
import json
import re

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


@as_subtests(
    "right, lists, sure, rows", itertools.product([True, False], [False, True], [0.1, 5.0, 60.0], [1, 2, 40, 80])
)
def test_rows_that_do_not_tell_the_temperature_leave_the_probabilities_alone(right, lists, sure, rows):
    """All of them right at any temperature, or all wrong: the least loss is at an end of what is tried."""
    labels = np.arange(rows) % 2
    logits = np.float32(sure if right else -sure) * (np.eye(2, dtype=np.float32)[labels] * 2 - 1)
    found = fit_temperature(logits, np.eye(2, dtype=np.int64)[labels] if lists else labels)
    assert found.temperature == 1
    assert (found.loss_after, found.error_after) == (found.loss_before, found.error_before)
    if right and found.loss_before == 0:
        assert found.bound is None  # nothing is better
    else:
        assert found.bound == (0.01 if right else 100)
        line = found.describe(rows)
        assert line.startswith(f"warning: training.calibrate changes nothing: on {rows} validation rows")
        assert ("told right" in line) == right
    assert not re.search(r"-0\.0+\b", f"{found.describe(rows)} {found}")


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


def test_a_run_that_cannot_be_calibrated_says_so(tmp_path, store, settings, capsys):
    """It is over and repeated as any other."""
    rows = np.arange(store.num_examples)
    chosen = settings("training.calibrate=true", "training.max_steps=40", "training.evaluate_every_steps=40")
    split = {"rows": rows[9:], "validation_rows": rows[:1]}
    result = train(chosen, store, tmp_path, progress="plain", **split)
    assert "warning: training.calibrate changes nothing: on 1 validation rows" in capsys.readouterr().err
    assert (result.calibration.temperature, result.calibration.bound is None) == (1, False)
    assert train(chosen, store, tmp_path, progress="none", **split) == result


@pytest.mark.slow
def test_a_calibrated_run(tmp_path, store, settings, capsys):
    """Only the best model is scaled, once: a run that is repeated or extended starts from what it trained."""
    plainly = ("training.precision=fp32", "training.learning_rate=3e-3")
    chosen = ("training.calibrate=true", *plainly)
    plain = train(settings(*plainly), store, tmp_path / "plain", progress="none")
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

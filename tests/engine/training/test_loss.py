"""Class weights and label smoothing in the training loss."""

import numpy as np
import pytest

from penstock.engine.errors import ConfigError
from penstock.engine.training.class_weights import resolve_class_weights
from penstock.engine.training.train import train

NAMES = ["ham", "spam", "yes"]


def test_balanced_weights_are_scikit_learns():
    """compute_class_weight("balanced"): rows over classes times the class's rows."""
    labels = np.array([0] * 7 + [1] * 2 + [2])
    assert resolve_class_weights("balanced", NAMES, labels) == pytest.approx([10 / 21, 10 / 6, 10 / 3])
    without = resolve_class_weights("balanced", NAMES, np.array([0, 0, 0, 1]))
    assert without == pytest.approx([4 / 6, 2.0, 1.0])


def test_weights_by_label():
    labels = np.zeros(1, np.int64)
    assert resolve_class_weights(None, NAMES, labels) is None
    assert resolve_class_weights({"spam": 3.0}, NAMES, labels).tolist() == [1, 3, 1]
    with pytest.raises(ConfigError, match=r"there is no label 'spma'; did you mean 'spam'\?"):
        resolve_class_weights({"spma": 3.0}, NAMES, labels)
    with pytest.raises(ConfigError, match="there is no label 'xxxx'; the labels are ham, spam, yes"):
        resolve_class_weights({"xxxx": 3.0}, NAMES, labels)


def test_the_weights_of_a_run_are_those_of_its_steps(tmp_path, store, settings):
    """Accumulated over four batches, with two of them in the last step, and in one: the same run."""
    import json

    same = (
        "data.mode=pack",
        "data.validation_fraction=0",
        "model.head_dropout=0",
        "training.label_smoothing=0.1",
        "training.precision=fp32",
    )
    weighted = "training.class_weights={bad: 5, good: 0.5}"
    for name, batches in (("one", 1), ("four", 4)):
        chosen = settings(*same, weighted, "data.tokens_per_batch=100000", f"data.batches_per_step={batches}")
        train(chosen, store, tmp_path / name, progress="none")
    found = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "four")
    ]
    for a, b in zip(*found, strict=True):
        if a["split"] == "train":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    first = found[0][1]
    weights = np.array([5.0, 1.0, 0.5])[store.labels]
    # new weights know nothing: every label's loss is near log 3, whatever it weighs
    assert first["loss"] == pytest.approx(np.log(3), abs=0.3)
    assert weights.mean() > 2  # what the loss would be multiplied by without a norm

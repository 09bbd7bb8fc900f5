import csv
import itertools
import random

import numpy as np
import pytest
from subtested import as_subtests

from penstock.engine.data.prepare import prepare
from penstock.engine.training.recipe import TrainingSet, encoder_learning_rate, recipe
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

SIZES = (30, 100, 1000, 10_000, 99_999, 100_000, 3_000_000)


@as_subtests("kind, length", itertools.product(["lstm", "encoder"], [12.0, 44.0, 190.0]))
def test_small_sets_get_more_epochs_and_smaller_steps(kind, length):
    made = [recipe(kind, TrainingSet(size, length, 256, 384)) for size in SIZES]
    epochs, tokens = zip(*[(r["training.epochs"], r["data.tokens_per_batch"]) for r in made], strict=True)
    assert list(epochs) == sorted(epochs, reverse=True)
    assert list(tokens) == sorted(tokens)
    assert min(tokens) >= 256
    assert made[-1]["data.tokens_per_batch"] >= 8192
    assert all(r["training.patience"] >= 4 for r in made)
    assert all(r["data.mode"] == ("bucket" if kind == "lstm" else "pack") for r in made)


def test_a_narrower_encoder_learns_at_a_higher_rate():
    rates = [recipe("encoder", TrainingSet(1000, 40.0, 256, width))["training.learning_rate"] for width in (768, 384)]
    assert rates == pytest.approx([5e-5, 1e-4])
    assert encoder_learning_rate(8) == 2e-4


def test_what_the_recipe_goes_by():
    found = TrainingSet.of(np.array([3, 5, 10], np.int32))
    assert (found.examples, found.mean_length, found.max_length) == (3, 6.0, 10)


PHRASES = {
    "en": (["charged twice", "refund missing", "invoice wrong"], ["app crashes", "login fails", "parcel damaged"]),
    "de": (["doppelt abgebucht", "Rückerstattung fehlt"], ["App stürzt ab", "Größe passt nicht", "Paket beschädigt"]),
}


def write_tickets(file, rows, share, language, classes, seed):
    """Short texts, of which `share` are not of the most frequent class."""
    draw = random.Random(seed)
    topics = PHRASES[language][::-1] if classes == 2 else [[f"topic{c} word{c}", f"word{c}"] for c in range(classes)]
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        for row in range(rows):
            # the rare classes in turn, so that each has its share at any size
            rare = row % round(1 / share) == 0
            number = 1 + row // round(1 / share) % (classes - 1) if rare else 0
            words = [draw.choice(["please help", "since yesterday", "danke", "- -"]), draw.choice(topics[number])]
            draw.shuffle(words)
            writer.writerow([" ".join(words), f"class {number}"])
    return str(file)


@pytest.mark.parametrize(
    ("rows", "share", "language", "classes", "seed"),
    [
        pytest.param(400, 0.1, "de", 2, 0, marks=pytest.mark.slow),
        pytest.param(3000, 0.02, "de", 2, 0, marks=pytest.mark.slow),
        pytest.param(3000, 0.02, "de", 2, 1, marks=pytest.mark.slow),
        pytest.param(3000, 0.01, "en", 2, 0, marks=pytest.mark.slow),
        pytest.param(1000, 0.05, "en", 2, 1, marks=pytest.mark.slow),
        pytest.param(300, 0.1, "de", 2, 0, marks=pytest.mark.slow),
        pytest.param(300, 0.5, "en", 3, 0, marks=pytest.mark.slow),
        pytest.param(1000, 0.5, "en", 20, 0, marks=pytest.mark.slow),
    ],
)
def test_plain_defaults_learn_small_and_imbalanced_sets(tmp_path, rows, share, language, classes, seed):
    """scikit-learn's TF-IDF and balanced logistic regression makes 1.000 of all of these."""
    source = write_tickets(tmp_path / "train.csv", rows, share, language, classes, 0)
    held_out = write_tickets(tmp_path / "test.csv", 400, share, language, classes, 1)
    store = prepare(source, tmp_path / "train", tokenizer="train:wordpiece:500", progress=False)
    test = prepare(held_out, tmp_path / "test", like=store.path, progress=False)
    settings = load_settings(None, [f"training.seed={seed}", "training.tensorboard=false"])
    result = train(settings, store, tmp_path / "run", test_store=test, progress="none")
    assert result.test.macro_f1 >= 0.97


def test_a_bag_has_room_for_its_n_grams_and_its_classes():
    made = [recipe("bag", TrainingSet(size, 44.0, 256, labels=5)) for size in SIZES]
    buckets = [found["model.buckets"] for found in made]
    assert buckets == sorted(buckets)
    epochs = [found["training.epochs"] for found in made]
    assert epochs == sorted(epochs, reverse=True)
    assert recipe("bag", TrainingSet(4_999, 44.0, 256, labels=5))["training.epochs"] == 8
    assert recipe("bag", TrainingSet(5_000, 44.0, 256, labels=5))["training.epochs"] == 4
    assert buckets[0] == 1 << 14
    assert buckets[-1] == 1 << 21
    assert all(count >= size * 44 for count, size in zip(buckets[1:4], SIZES[1:4], strict=True))
    widths = [
        recipe("bag", TrainingSet(100, 44.0, 256, labels=labels))["model.embedding_size"] for labels in (2, 17, 2491)
    ]
    assert widths == [16, 32, 64]

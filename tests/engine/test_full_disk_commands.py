"""A disk of every size under every command that writes: exit code 9 and one line, and with room the same command ends.

The sizes are shares of what the command needs, so that the disk becomes full at every stage of it.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import penstock
from few_texts import write_texts
from tiny_encoders import stock_model

from penstock.engine.study import measure_cost, study

pytestmark = pytest.mark.slow

SHARES = [0.0, 0.04, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
OFTEN = ["training.precision=fp32", "training.max_steps=6", "training.checkpoint_every_steps=2"]
OFTEN += ["training.evaluate_every_steps=3", "data.tokens_per_batch=256", "training.tensorboard=false"]
LSTM = ["model.hidden_size=64", "model.embedding_size=64", "model.num_layers=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "train.csv", 240, 0)
    write_texts(folder / "test.csv", 90, 1)
    rows = (folder / "train.csv").read_text().splitlines()
    (folder / "texts.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
    made = penstock(
        *("prepare", folder / "train.csv", "--out", folder / "store", "--tokenizer", "train:wordpiece:150"),
        *("--text", "text", "--label", "label", "--max-length", "32"),
    )
    assert made.returncode == 0, made.stderr
    encoder = stock_model("bert", vocab_size=150, hidden_size=64, intermediate_size=256)
    encoder.save_pretrained(folder / "encoder")
    for file in (folder / "store" / "tokenizer").iterdir():
        shutil.copy(file, folder / "encoder")
    trained = penstock("train", "--train", folder / "store", "--out", folder / "run", *LSTM, *OFTEN)
    assert trained.returncode == 0, trained.stderr
    return folder


def commands(data: Path) -> dict[str, Callable[[Path], list]]:
    """By name: the arguments of a command that writes into a folder."""
    store = ["--train", data / "store"]
    encoder = ["--encoder", data / "encoder"]
    tables = ["--train", data / "train.csv", "--test", data / "test.csv", "--text", "text", "--label", "label"]
    grid = ["--sizes", "60", "--seeds", "1", "--families", "linear,lstm,encoder", "--max-test", "60"]
    return {
        "train lstm": lambda disk: ["train", *store, "--out", disk / "run", *LSTM, *OFTEN],
        "train encoder": lambda disk: ["train", *store, *encoder, "--out", disk / "run", *OFTEN],
        "train bag": lambda disk: [
            "train",
            *store,
            "--model",
            "bag",
            "--out",
            disk / "run",
            *OFTEN[1:],
            "model.ngrams=2",
            "model.buckets=5000",
        ],
        "prepare": lambda disk: [
            *("prepare", data / "train.csv", "--out", disk / "new", "--tokenizer", "train:bpe:300"),
            *("--text", "text", "--label", "label"),
        ],
        "predict csv": lambda disk: ["predict", data / "run", data / "texts.csv", "--out", disk / "out.csv"],
        "predict parquet": lambda disk: ["predict", data / "run", data / "texts.csv", "--out", disk / "out.parquet"],
        "export onnx": lambda disk: ["export", "onnx", data / "run", "--out", disk / "model.onnx"],
        "evaluate": lambda disk: ["evaluate", data / "run", "--data", data / "store", "--html", disk / "page.html"],
        "study": lambda disk: ["study", *tables, *encoder, *grid, "--out", disk / "study", "training.max_steps=4"],
    }


NAMES = list(commands(Path()))


@pytest.fixture(autouse=True)
def quick_costs(monkeypatch):
    monkeypatch.setattr(measure_cost, "_MIN_RUNS", {1: 1, 32: 1})

    def quick(family, settings, train, test):
        return measure_cost.measure(family, measure_cost.subject_of(settings, train), test, seconds=0.0)

    monkeypatch.setattr(study, "measure_cost", quick)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_of_every_size(name, data, disk):
    arguments = commands(data)[name]
    folder = disk(64 << 20)
    whole = penstock(*arguments(folder))
    assert whole.returncode == 0, whole.stderr
    needed = shutil.disk_usage(folder).used
    refused = 0
    for share in SHARES:
        folder = disk(int(share * needed))
        what = f"{name} with {share:.0%} of {needed:,} bytes"
        finished = penstock(*arguments(folder))
        assert "Traceback" not in finished.stderr, f"{what}: {finished.stderr}"
        assert finished.returncode in (0, 9), f"{what}: {finished.returncode}\n{finished.stderr}"
        if finished.returncode == 0:
            continue
        refused += 1
        said = re.findall("^penstock: (?!warning: ).*", finished.stderr, re.MULTILINE)
        assert len(said) == 1, f"{what}: {finished.stderr}"
        assert str(folder) in said[0], said
        disk(64 << 20, grow=True)
        again = penstock(*arguments(folder))
        assert again.returncode == 0, f"{what}, then with room: {again.stderr}"
        left = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".writing"))]
        assert not left, f"{what}: {left}"
    assert refused > 1

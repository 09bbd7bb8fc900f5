"""What the tests of studies share: stores of reviews, and costs that are measured as seldom as can be."""

import pytest
from tiny_encoders import stock_model

from penstock.engine.data.prepare import prepare
from penstock.engine.study import measure_cost, study


@pytest.fixture(autouse=True)
def quick_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with as few runs as there can be; `test_study.py` has the real thing."""
    monkeypatch.setattr(measure_cost, "_MIN_RUNS", {1: 1, 32: 1})

    def quick(family, settings, train, test):
        return measure_cost.measure(family, measure_cost.subject_of(settings, train), test, seconds=0.0)

    monkeypatch.setattr(study, "measure_cost", quick)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots hold nothing: drawing them is what takes long, and test_report.py looks at them."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"no picture"))


@pytest.fixture(scope="session")
def stores(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str]]:
    """400 reviews to train on and 100 to test on, in MiniLM's vocabulary; to be read only."""
    folder = tmp_path_factory.mktemp("stores")
    train = prepare("synthetic:reviews?n=400&seed=0", folder / "train", tokenizer=minilm, progress=False)
    test = prepare("synthetic:reviews?n=100&seed=1", folder / "test", like=train.path, progress=False)
    return {"train": (str(train.path),), "test": (str(test.path),)}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str] | str]:
    """400 reviews to train on and 60 to test on, with a small vocabulary and a tiny encoder; to be read only."""
    folder = tmp_path_factory.mktemp("tiny")
    train = prepare("synthetic:reviews?n=400&seed=0", folder / "train", tokenizer="train:wordpiece:300", progress=False)
    test = prepare("synthetic:reviews?n=60&seed=1", folder / "test", like=train.path, progress=False)
    stock_model("bert", vocab_size=train.vocab_size).save_pretrained(folder / "encoder")
    train.tokenizer().save_pretrained(folder / "encoder")
    return {"train": (str(train.path),), "test": (str(test.path),), "encoder": str(folder / "encoder")}

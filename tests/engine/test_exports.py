"""What `penstock.engine` exports: there, with an example that runs, and imported only when asked for."""

import doctest
import importlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from subtested import as_subtests

import penstock.engine

OLD = Path(__file__).parent / "old_formats"


@pytest.mark.slow
@as_subtests("name", penstock.engine.__all__)
def test_the_example_of_each_export_runs(name, tmp_path, monkeypatch):
    for folder in ("train", "test", "run"):
        shutil.copytree(OLD / folder, tmp_path / folder, symlinks=True)
    monkeypatch.chdir(tmp_path)
    exported = getattr(penstock.engine, name)
    test = doctest.DocTestParser().get_doctest(exported.__doc__, {}, name, None, None)
    assert test.examples
    report: list[str] = []
    result = doctest.DocTestRunner().run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert exported is getattr(importlib.import_module(exported.__module__), name)
    assert name in dir(penstock.engine)


def test_importing_the_package_imports_nothing_slow():
    script = (
        "import sys, penstock.engine\n"
        "slow = [name for name in ('torch', 'transformers', 'pyarrow', 'numpy') if name in sys.modules]\n"
        "assert not slow, slow\n"
        "penstock.engine.load_settings\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_whoever_reads_a_tokenizer_waits_for_no_model():
    """The Auto classes know ours from the first configuration on, one that was sent here too."""
    from penstock.engine.models.bag_config import BagClassifierConfig

    script = (
        "import pickle, sys, penstock.engine\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "assert 'transformers.modeling_utils' not in sys.modules\n"
        f"config = pickle.loads({pickle.dumps(BagClassifierConfig(buckets=5, vocab_size=5))!r})\n"
        "print(type(AutoModelForSequenceClassification.from_config(config)).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "BagClassifier\n"


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'Sotre'"):
        _ = penstock.engine.Sotre  # type: ignore[attr-defined]

"""Settings that say how, not what: a run reads the same however its store is read, and says what it cannot use."""

import pytest
import torch
from safetensors.torch import load_file

from penstock.engine.data import store as store_module
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError
from penstock.engine.training.precision import tf32
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

SHORT = ("training.max_steps=4", "data.validation_fraction=0")


def test_the_reader_changes_no_result_and_may_change(store, settings, tmp_path):
    for reader in ("mmap", "pread"):
        train(settings(*SHORT, f"data.reader={reader}"), store, tmp_path / reader, progress="none")
    one, other = (load_file(tmp_path / reader / "model.safetensors") for reader in ("mmap", "pread"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = train(settings(*SHORT, "data.reader=pread"), store, tmp_path / "mmap", progress="none")
    assert again.steps == 4


def test_a_run_reads_as_it_is_told(store, settings, tmp_path, monkeypatch, capsys):
    from penstock.engine.training import loop

    readers = []
    plain = loop.Loader.__init__

    def noted(self, store, **options):
        readers.append(store.reader)
        plain(self, store, **options)

    monkeypatch.setattr(loop.Loader, "__init__", noted)
    train(settings(*SHORT, "data.reader=pread"), store, tmp_path / "told", progress="plain")
    assert readers == ["pread"]
    assert "pread" not in capsys.readouterr().err
    monkeypatch.setattr(store_module, "file_system_of", lambda path: "nfs4")
    train(settings(*SHORT), Store.open(store.path), tmp_path / "found", progress="plain")
    assert readers == ["pread", "pread"]
    assert "it is read with pread (data.reader)" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_says_where_it_changes_nothing(store, settings, tmp_path, capsys, wanted):
    word = str(wanted).lower()
    train(settings(*SHORT, f"training.tf32={word}"), store, tmp_path, device="cpu", progress="plain")
    assert f"training.tf32={word} changes nothing here: only GPUs have TF32" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [True, False, None])
def test_tf32_is_put_back(wanted):
    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()

    def fails():
        with tf32(wanted):
            assert flags() == (before if wanted is None else (wanted, wanted))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert flags() == before


def test_a_bag_has_no_use_for_tf32():
    with pytest.raises(ConfigError, match=r"training\.tf32=True has no effect"):
        load_settings(None, ["model.kind=bag", "training.tf32=true"])

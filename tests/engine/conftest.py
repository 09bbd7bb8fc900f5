import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.engine.data import pair_tokenizing, tokenizers

_ALL = tokenizers.probe_texts


def _probes(texts: tuple[str, ...]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (tokenizers, pair_tokenizing):
            patch.setattr(module, "probe_texts", lambda: texts)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_probes() -> Iterator[None]:
    """A store keeps a digest of 1000 texts' tokens, a third of the time that a small one takes; here of 40.

    Of pairs it takes seconds: the library, which cuts them, also makes all the pieces that it cuts off.
    """
    yield from _probes(_ALL()[:40])


@pytest.fixture(scope="module")
def all_probes() -> Iterator[None]:
    """For stores that were made, or are read, by another process."""
    yield from _probes(_ALL())


@pytest.fixture
def disk(tmp_path):
    """A function that empties a small disk and gives it a size in bytes, or makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: int, grow: bool = False) -> Path:
        how = "remount," if grow else ""
        if not grow:
            subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)
        made = ["mount", "-t", "tmpfs", "-o", f"{how}size={max(size, 4096)}", "tmpfs", folder]
        if subprocess.run(made, capture_output=True, check=False).returncode:
            pytest.skip("only who may mount file systems can make a small one")
        return folder

    yield sized
    subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)

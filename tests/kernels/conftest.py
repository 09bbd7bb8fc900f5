from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend; of "cpu avx2" that is "cpu", with that instruction set."""
    name, _, isa = request.param.partition(" ")
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    return name


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The C++ kernels use this instruction set; "" leaves them the fastest."""
    monkeypatch.setenv("PENSTOCK_ISA", request.param)
    return request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine OpenMP's threads wait long for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def uninitialised_is_nan() -> Iterator[None]:
    """torch fills what `empty` returns with NaN while deterministic algorithms are on."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)

"""Which backend serves a call."""

import pytest
from subtested import as_subtests

from penstock.kernels import dispatch, use_backend

T = object()


@pytest.fixture
def operation(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dispatch, "_registry", {})
    dispatch.register("op", "reference", "R")
    dispatch.register("op", "torch", T, lambda size, **_: f"size {size} is odd" if size % 2 else None)
    dispatch.register("op", "triton", "G", available=lambda: "no GPU")
    dispatch.register("op", "cuda", "C", on_request="not tried yet")
    return "op"


def test_fastest_that_can(operation: str) -> None:
    assert dispatch.choose("op", size=2) == "torch"
    assert dispatch.choose("op", size=3) == "reference"
    assert dispatch.implementation("op", "torch") is T


@pytest.mark.parametrize("name", ["penstock.kernels.dispatch", "penstock.kernels.dispatch:use_backend"])
def test_imported_by_name(operation: str, name: str) -> None:
    dispatch.register("op", "cpu", name)
    assert dispatch.implementation("op", "cpu") is (use_backend if ":" in name else dispatch)


def test_forced(operation: str) -> None:
    with use_backend("reference"):
        assert dispatch.choose("op", size=2) == "reference"
        with use_backend(None):
            assert dispatch.choose("op", size=2) == "torch"
        assert dispatch.choose("op", size=2) == "reference"
    assert dispatch.choose("op", size=2) == "torch"
    with use_backend("cuda"):
        assert dispatch.choose("op", size=2) == "cuda"


@as_subtests("name, reason", [("torch", "size 3 is odd"), ("triton", "no GPU"), ("cpu", "no 'cpu'")])
def test_forced_but_unable(operation: str, name: str, reason: str) -> None:
    with use_backend(name), pytest.raises(RuntimeError, match=reason):
        dispatch.choose("op", size=3)


def test_unknown_names(operation: str) -> None:
    with pytest.raises(ValueError, match="tpu"), use_backend("tpu"):
        pass
    with pytest.raises(ValueError, match="tpu"):
        dispatch.register("op", "tpu", None)


def test_status(operation: str) -> None:
    assert dispatch.status() == [
        ("op", "cuda", "not tried yet"),
        ("op", "triton", "no GPU"),
        ("op", "torch", None),
        ("op", "reference", None),
    ]

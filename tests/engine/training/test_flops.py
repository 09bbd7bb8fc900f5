"""The peak that MFU is measured against: known by the exact name of a GPU, or not at all."""

import pytest
import torch
from subtested import as_subtests

from penstock.engine.training import flops
from penstock.engine.training.counters import Interval
from penstock.engine.training.flops import _PEAK_TFLOPS, peak_flops


def named(name: str, monkeypatch: pytest.MonkeyPatch) -> float | None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    return peak_flops(torch.device("cuda"))


@as_subtests(
    "name, tflops",
    [
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
    ],
)
def test_known_gpus(name: str, tflops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(name, monkeypatch) == tflops * 1e12


# other chips, or parts of one, whose names hold a known one's
OTHERS = [
    *("NVIDIA RTX A1000", "NVIDIA RTX A1000 6GB Laptop GPU", "NVIDIA A10G", "NVIDIA A100X", "GRID A100-10C"),
    *("NVIDIA L40", "NVIDIA T400", "NVIDIA T400 4GB", "NVIDIA T4G", "Quadro T1000"),
    *("NVIDIA H100 NVL", "NVIDIA H20", "NVIDIA B200A", "NVIDIA GB200", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"),
    *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA", ""),
    *(f"NVIDIA {key}0" for key in _PEAK_TFLOPS if f"{key}0" not in _PEAK_TFLOPS),
    *(f"NVIDIA A{key}" for key in _PEAK_TFLOPS),
]


@as_subtests("name", OTHERS)
def test_other_gpus_have_no_peak(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(name, monkeypatch) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpus_peak_is_measured_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    peak = peak_flops(cpu, precision)
    assert peak is not None
    assert peak > 1e8
    monkeypatch.setattr(flops, "flops_probe", lambda dtype: pytest.fail("measured again"))
    assert peak_flops(cpu, precision) == peak


def test_a_cpus_peak_is_found_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1e9] * 5 + [2e9] * 15 + [5e11] + [1e9] * 1000)
    monkeypatch.setattr(flops, "flops_probe", lambda dtype: lambda: next(rates))
    flops._probed.cache_clear()
    assert peak_flops(torch.device("cpu")) == 5e11
    flops._probed.cache_clear()


@pytest.mark.parametrize(("peak", "share"), [(1e9, 0.6), (6e8, 1.0), (1e7, None), (None, None)])
def test_no_share_of_a_peak_exceeds_it(peak: float | None, share: float | None) -> None:
    interval = Interval()
    interval.add(examples=1, tokens=100, seconds=1.0, waited=0.0)
    assert interval.speed(6e6, peak, devices=1)["mfu"] == share


def test_no_peak_where_nothing_measures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "flops_probe", lambda dtype: None)
    flops._probed.cache_clear()
    assert peak_flops(torch.device("cpu")) is None
    flops._probed.cache_clear()
    assert peak_flops(torch.device("meta")) is None

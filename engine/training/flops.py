"""Model FLOPs utilisation: arithmetic done against what the device could do."""

import functools
import re
import time

import torch
from torch import nn

from penstock.engine.machine import flops_probe

# Dense bf16/fp16 tensor-core peaks in TFLOP/s, from NVIDIA's data sheets, by the words of a GPU's name.
_PEAK_TFLOPS = {
    "H200": 989,
    "GH200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "V100": 125,
    "T4": 65,
    "B200": 2250,
    "RTX 4090": 165,
    "RTX 3090": 71,
}

# Words that tell nothing about the chip: maker, family, board, memory. Any other makes it another (Ti, Laptop, NVL)
# or a part of one (MIG 1g.5gb), whose peak is not known.
_BESIDE_THE_CHIP = re.compile(r"NVIDIA|Tesla|GeForce|GPU|SXM\d?|PCIe|HBM\d\w?|\d+GB", re.IGNORECASE)


# Probes take a millisecond or less. The fastest counts, as others may have had the cores in between: on a busy machine
# it takes many until all threads run at once.
_IN_VAIN = 20  # probes in a row that were no faster: then it is found
_LONGEST = 1.0  # seconds


def peak_flops(device: torch.device, precision: str = "fp32") -> float | None:
    """FLOP/s of the device: of a GPU in 16-bit arithmetic by its data sheet, of a CPU as all of torch's threads reach
    it on registers alone, in bfloat16 or in float32 as training does. None where it is not known.

    Args:
        precision: "fp32", "bf16" or "fp16".
    """
    if device.type == "cpu":
        return _probed("bfloat16" if precision == "bf16" else "float32", torch.get_num_threads())
    if device.type != "cuda":
        return None
    return _peak_flops_named(torch.cuda.get_device_name(device))


@functools.cache
def _probed(dtype: str, threads: int) -> float | None:
    """Measured once per process and number of threads."""
    probe = flops_probe(dtype)
    if probe is None:
        return None
    found, in_vain, end = probe(), 0, time.monotonic() + _LONGEST
    while in_vain < _IN_VAIN and time.monotonic() < end:
        rate = probe()
        in_vain = 0 if rate > 1.01 * found else in_vain + 1
        found = max(found, rate)
    return found


def _peak_flops_named(name: str) -> float | None:
    words = [word for word in re.split(r"[\s-]+", name) if word]
    chip = [word for word in words if not _BESIDE_THE_CHIP.fullmatch(word)]
    on_pcie = [*chip, "PCIe"] if any(word.lower() == "pcie" for word in words) else chip
    for candidate in (" ".join(on_pcie), " ".join(chip)):
        if candidate in _PEAK_TFLOPS:
            return _PEAK_TFLOPS[candidate] * 1e12
    return None


def training_flops_per_token(model: nn.Module) -> float:
    """6 FLOPs (forward 2, backward 4) for each matrix weight that every token meets; 2 for frozen ones.

    Look-up tables do no arithmetic. Attention's score products, which grow with length, are left out: the
    utilisation shown is a lower bound.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return float(
        sum(
            (6 if parameter.requires_grad else 2) * parameter.numel()
            for parameter in model.parameters()
            if parameter.ndim == 2 and id(parameter) not in tables
        )
    )

"""Every Triton kernel compiled for GPUs that need not be there, as the backends launch it: what its code takes.

The files interpreted_*.py run the kernels.
"""

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

import compiled_triton as compiled
from sampling import sampled
from triton.runtime.jit import JITFunction

from penstock import kernels

# dropout may not bring back what its rule is made for: random bits that cross shared memory, blocks that are alone
ATTENTION = {"forward_kernel": (630, 3), "dq_kernel": (630, 4), "dkdv_kernel": (500, 4)}
WIDE = {
    "bias_gelu bf16": {"forward_kernel": "ld st", "backward_kernel": "ld"},
    "geglu bf16": {"geglu_forward_kernel": "ld st"},
    "lstm_cell bf16": {"fused_cell_forward": "ld st", "fused_cell_backward": "ld st"},
    "lstm_cell fp32": {"fused_cell_forward": "ld st", "fused_cell_backward": "ld st"},
    "segment_pool bf16 max": {"backward_kernel": "st"},
    "segment_pool bf16 mean": {"backward_kernel": "st"},
    "segment_pool bf16 last": {"backward_kernel": "st"},
    "segment_pool bf16 attention": {"backward_kernel": "st"},
    "residual_norm bf16 768 dropout": {"backward_kernel": "st"},
}


def launched() -> set[tuple[str, str]]:
    """(module, name) of every kernel that some backend launches."""
    folder = Path(kernels.__file__).parent
    found = set()
    for file in sorted(folder.glob("*/triton.py")):
        module = importlib.import_module(f"penstock.kernels.{file.parent.name}.triton")
        for name in re.findall(r"\b(\w+)\[", file.read_text()):
            if isinstance(getattr(module, name, None), JITFunction):
                found.add((file.parent.name, name))
    return found


def test_every_kernel_has_a_case() -> None:
    expected, met = launched(), set()
    assert len(expected) >= 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda kernel, *_, **__: met.add(kernel))
        for case in compiled.CASES.values():
            case()
    assert {(kernel.__module__.split(".")[-2], kernel.__name__) for kernel in met} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "case", "aligned"),
    [
        *((capability, case, True) for capability in compiled.SHARED_BYTES for case in sampled(compiled.CASES, 6)),
        *((90, case, False) for case in sampled(compiled.CASES, 2) if "lstm" in case),
    ],
)
def test_compiles(capability: int, case: str, aligned: bool) -> None:
    for kernel in compiled.compile_case(case, capability, aligned).values():
        assert kernel.asm["cubin"]
        # the LSTM's W_hh fills what sm_80 has; all else runs on sm_86 too
        limit = 163 << 10 if capability == 80 and "lstm" in case else compiled.SHARED_BYTES[capability]
        assert kernel.metadata.shared <= limit


@pytest.mark.slow
def test_dropout_stays_in_the_layout_of_the_products() -> None:
    found = compiled.compile_case("attention bf16 dropout", 90)
    for name, (instructions, barriers) in ATTENTION.items():
        code = compiled.code(found[name])
        assert code.registers <= 128, name
        assert code.stack <= 32, name
        assert max(code.loops) <= instructions, name
        assert code.barriers <= barriers, name


@pytest.mark.parametrize("case", WIDE)
def test_accesses_are_sixteen_bytes_wide(case: str) -> None:
    found = compiled.compile_case(case, 90)
    for name, kinds in WIDE[case].items():
        for kind in kinds.split():
            widths = compiled.widths(found[name], kind)
            assert widths, name
            assert set(widths) == {128}, (name, kind)


@pytest.mark.parametrize("mode", ["max", "mean", "attention"])
def test_pooling_reads_its_values_in_sixteen_bytes(mode: str) -> None:
    found = compiled.compile_case(f"segment_pool bf16 {mode}", 90)
    assert max(compiled.widths(found["forward_kernel"], "ld")) == 128


@pytest.mark.parametrize("aligned", [True, False])
def test_a_bare_lstm_compiles(aligned: bool) -> None:
    assert all(kernel.asm["cubin"] for kernel in compiled.compile_case("lstm bf16 H 32 bare", 90, aligned).values())


@pytest.mark.slow
def test_float32_states_do_not_spill() -> None:
    for name, kernel in compiled.compile_case("lstm fp32 H 64", 90).items():
        assert compiled.code(kernel).stack == 0, name


@pytest.mark.parametrize("hidden", [16, 32, 48, 64])
def test_float32_states_compile_whatever_their_width(hidden: int) -> None:
    """Triton 3.9 aborts the process over exact float32 products of aligned blocks."""
    with compiled.compiled_for(90) as found:
        compiled.lstm(compiled.FP32, hidden)
    assert all(kernel.asm["cubin"] for _, kernel in found)

"""The Triton kernels of residual_norm, bias_gelu, geglu, rotary and segment_pool, chosen or not; test_triton_code.py
compiles them, interpreted_rowwise.py runs them."""

import torch

from penstock.kernels import dispatch


def test_say_what_they_cannot_serve():
    facts = {"device_type": "cuda", "dtype": torch.bfloat16, "width": 384, "mode": "max"}
    for operation in ("residual_norm", "bias_gelu", "geglu", "rotary", "segment_pool"):
        why_not = dispatch._registry[operation]["triton"].why_not
        assert why_not(**facts) is None
        assert "CUDA" in why_not(**{**facts, "device_type": "cpu"})
        assert "float64" in why_not(**{**facts, "dtype": torch.float64})
    assert "width" in dispatch._registry["residual_norm"]["triton"].why_not(**{**facts, "width": 8193})

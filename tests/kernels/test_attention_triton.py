"""The Triton attention, chosen or not; test_triton_code.py compiles it, interpreted_attention.py runs it."""

import torch

from penstock.kernels import dispatch


def test_says_what_it_cannot_serve():
    facts = {"device_type": "cuda", "dtype": torch.bfloat16, "head_dim": 64, "dropout": True}
    why_not = dispatch._registry["varlen_attention"]["triton"].why_not
    assert why_not(**facts) is None
    assert "CUDA" in why_not(**{**facts, "device_type": "cpu"})
    assert "float64" in why_not(**{**facts, "dtype": torch.float64})
    assert "head_dim" in why_not(**{**facts, "head_dim": 257})

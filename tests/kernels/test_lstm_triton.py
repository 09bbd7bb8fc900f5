"""The Triton LSTM, chosen or not; test_triton_code.py compiles it, interpreted_lstm.py runs it."""

import torch

from penstock.kernels import dispatch


def test_is_never_the_default() -> None:
    reasons = {(operation, name): reason for operation, name, reason in dispatch.status()}
    assert reasons["lstm", "triton"]
    facts = {"dtype": torch.float32, "input_size": 4, "hidden_size": 4, "proj_size": 0, "needs": ()}
    for device in ("cpu", "cuda"):
        assert dispatch.choose("lstm", device_type=device, **facts) != "triton"

"""How many kernels one layer of an encoder launches in a training step, counted without a GPU.

    python -m penstock.benchmarks.gpu.launches

Torch's own operations that write something count one each, views and allocations none, ours what their Triton
launches (tests/kernels/test_capture_safety.py counts those). The difference of a model with one layer more counts, in
bf16 autocast, with dropout and the ids that the loader gives; the optimizer is not in it.
"""

import os
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# of ours, where it is more than one
KERNELS = {
    "residual_norm_backward": 2,
    "bias_gelu_backward": 2,
    "geglu_backward": 2,
    "varlen_attention_backward": 2,  # 3 of few sequences
}
_SIZES = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
_SIZES |= {"max_position_embeddings": 40, "pad_token_id": 1}

Counts = tuple[Counter[str], Counter[str]]  # of forward and backward


def per_layer(architecture: str) -> Counts:
    """{operation: kernels} that one more layer launches. For a process of its own: Triton is stood in for."""
    from penstock.benchmarks.gpu import rehearsal

    os.environ |= rehearsal.environment("", ())
    rehearsal.begin()
    from penstock.kernels import dispatch

    for operation, backends in dispatch._registry.items():
        on = {name: replace(each, on_request=None) for name, each in backends.items() if name != "cpu"}
        dispatch._registry[operation] = on
    few, more = (_step(architecture, layers) for layers in (2, 3))
    forward, backward = (Counter(b) - Counter(a) for a, b in zip(few, more, strict=True))
    return forward, backward


def _step(architecture: str, layers: int) -> Counts:
    import transformers

    from penstock.engine.models.encoder import EncoderClassifier
    from penstock.kernels import Ragged

    make: Any = {"roberta": transformers.RobertaConfig, "modernbert": transformers.ModernBertConfig}[architecture]
    special = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}
    more = {"global_attn_every_n_layers": 1, **special} if architecture == "modernbert" else {}
    config = make(num_hidden_layers=layers, **_SIZES, **more)
    model = EncoderClassifier(transformers.AutoModelForSequenceClassification.from_config(config)).train()
    lengths = [10, 12, 8]
    ids = torch.arange(len(lengths))
    batch = Ragged.from_lengths(torch.randint(4, 100, (sum(lengths),), dtype=torch.int32), lengths, ids)
    counted = _Counted()
    with counted, torch.autocast("cpu", torch.bfloat16):
        loss = model(batch, labels=torch.tensor([0, 1, 0])).loss
    forward = counted.kernels.copy()
    with counted:
        loss.backward()
    return forward, counted.kernels - forward


class _Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        moves_nothing = function.is_view or name in ("detach", "alias", "_unsafe_view")
        if not moves_nothing and "empty" not in name:
            self.kernels[name] += KERNELS.get(name, 1)
        return function(*args, **(kwargs or {}))


def main(arguments: list[str]) -> int:
    for architecture in arguments or ["roberta", "modernbert"]:
        for phase, counts in zip(("forward", "backward"), per_layer(architecture), strict=True):
            print(f"{architecture} {phase}: {counts.total()} kernels: {dict(counts.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

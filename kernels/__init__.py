"""Fused kernels for ragged batches: they stand on their own and need torch only."""

if __name__ == "kernels":
    # The repository's root is on sys.path, and someone (transformers) looks for PyPI's `kernels`, the Hub's loader.
    # Give them that one if it is installed, else an empty module: nothing may register torch operations twice.
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _root = Path(__file__).resolve().parents[1]
    _spec = PathFinder.find_spec("kernels", [entry for entry in sys.path if Path(entry).resolve() != _root])
    __path__ = []
    if _spec is not None and _spec.origin is not None and _spec.loader is not None:
        sys.modules["kernels"] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["kernels"])
else:
    from penstock.kernels.attention import varlen_attention
    from penstock.kernels.bag import adagrad_rows, ngram_bag
    from penstock.kernels.dispatch import use_backend
    from penstock.kernels.gelu import bias_gelu, geglu
    from penstock.kernels.linear import linear
    from penstock.kernels.lstm import LSTM, lstm, lstm_cell
    from penstock.kernels.norm import residual_norm
    from penstock.kernels.pooling import segment_pool
    from penstock.kernels.ragged import Ragged
    from penstock.kernels.rotary import rotary

    __all__ = [
        "LSTM",
        "Ragged",
        "adagrad_rows",
        "bias_gelu",
        "geglu",
        "linear",
        "lstm",
        "lstm_cell",
        "ngram_bag",
        "residual_norm",
        "rotary",
        "segment_pool",
        "use_backend",
        "varlen_attention",
    ]

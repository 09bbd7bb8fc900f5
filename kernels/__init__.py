"""Fused kernels for ragged batches: they stand on their own and need torch only."""

from penstock.kernels.attention.ops import varlen_attention
from penstock.kernels.dispatch import use_backend
from penstock.kernels.lstm import LSTM, lstm
from penstock.kernels.pooling.ops import segment_pool
from penstock.kernels.ragged import Ragged

__all__ = ["LSTM", "Ragged", "lstm", "segment_pool", "use_backend", "varlen_attention"]

"""The LSTM: `LSTM`, the module, and `lstm`, the function behind it."""

from penstock.kernels.lstm.functional import lstm
from penstock.kernels.lstm.module import LSTM

__all__ = ["LSTM", "lstm"]

"""The LSTM: `LSTM`, the module; `lstm`, the function behind it; `lstm_cell`, one step without its products."""

from penstock.kernels.lstm.cell import lstm_cell
from penstock.kernels.lstm.functional import lstm
from penstock.kernels.lstm.module import LSTM
from penstock.kernels.lstm.protocol import LayerWeights

__all__ = ["LSTM", "LayerWeights", "lstm", "lstm_cell"]

"""The least time that a kernel could take: its operations over the machine's matmul rate, its bytes over its copy rate.

Operations are those of the real tokens, whatever a contestant computes on padding besides. Bytes count every input
once and every output once; what is saved between forward and backward is left out, so the floor stays below any
implementation. All formulas count a multiply-add as two operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PHASES = ("inference", "forward", "training")  # no gradients; saving what backward needs; forward and backward


@dataclass(frozen=True)
class Work:
    """What must be done at least."""

    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def lstm_layer(
    phase: str, tokens: int, batch: int, input_size: int, hidden_size: int, directions: int, itemsize: int
) -> Work:
    """One layer, input projection included: 8 H (I + H) operations a token and direction, three times that in training.

    Backward makes two products of the same size for each of forward's: towards the input and towards the weights.
    """
    gates = 4 * hidden_size
    flops = 2.0 * tokens * gates * (input_size + hidden_size) * directions
    weights = directions * gates * (input_size + hidden_size + 2)
    values = tokens * input_size + tokens * directions * hidden_size  # x and y
    states = 2 * directions * batch * hidden_size  # h_n and c_n
    if phase != "training":
        return Work(flops, float(itemsize * (values + weights) + itemsize * states))
    # forward: x, weights, y; backward: dy, x, weights once more; dx, dweights
    return Work(
        3 * flops, float(itemsize * (values + weights + states + values + weights + tokens * input_size + weights))
    )


def attention(phase: str, lengths: Sequence[int], heads: int, head_dim: int, itemsize: int) -> Work:
    """Within each sequence, without a mask: 4 n^2 d operations a head forward, and 2.5 times that backward.

    Backward recomputes q k^T: five products for forward's two.
    """
    flops = 4.0 * heads * head_dim * sum(length * length for length in lengths)
    tensor = itemsize * heads * head_dim * sum(lengths)
    if phase != "training":
        return Work(flops, 4.0 * tensor)  # q, k, v, out
    return Work(3.5 * flops, 12.0 * tensor)  # and q, k, v, out, dout, dq, dk, dv


def lstm_classifier(lengths: Sequence[int], embedding: int, hidden: int, layers: int) -> float:
    """Operations of one training step of a bidirectional classifier, its embedding and its head left out."""
    tokens = sum(lengths)
    widths = [embedding, *[2 * hidden] * (layers - 1)]
    return sum(lstm_layer("training", tokens, len(lengths), width, hidden, 2, 2).flops for width in widths)


def encoder(lengths: Sequence[int], width: int, intermediate: int, layers: int) -> float:
    """Operations of one training step of a BERT-type encoder: products with weights three times, attention 3.5 times.

    A token meets 4 w^2 + 2 w i weights a layer. What a classifier may skip in its last layer is counted all the same.
    """
    weights = layers * (4 * width * width + 2 * width * intermediate)
    squares = sum(length * length for length in lengths)
    return 6.0 * weights * sum(lengths) + 3.5 * 4.0 * layers * width * squares

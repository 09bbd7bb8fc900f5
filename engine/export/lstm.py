"""The LSTM classifier in ONNX's own operators."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor

from penstock.engine.export.graph import Graph
from penstock.engine.models import LSTMClassifier


def lstm_graph(model: LSTMClassifier) -> onnx.ModelProto:
    """Each layer is one LSTM operator, which is told the lengths; padding may stand on either side of a text."""
    graph = Graph()
    ids, there = graph.inputs(columns=1)  # one more, so that none of the operators meets a length of 0
    lengths, ids, valid = _to_the_left(graph, ids, there)
    x = graph("Gather", _array(model.embeddings.weight), graph("Transpose", ids))  # (length, batch, features)
    last = ""
    for layer in range(model.config.num_layers):
        y, last = graph.several(
            "LSTM",
            2,
            x,
            *_weights(model.lstm, layer),
            lengths,
            hidden_size=model.config.hidden_size,
            direction="bidirectional" if model.config.bidirectional else "forward",
        )
        x = graph("Reshape", graph("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])
    if model.config.pooling == "last":
        pooled = graph("Reshape", graph("Transpose", last, perm=[1, 0, 2]), [0, -1])
    else:
        pooled = _pooled(graph, model, x, graph("Unsqueeze", graph("Transpose", valid), [2]), lengths)
    some = graph("Unsqueeze", graph("Greater", lengths, np.int32(0)), [1])
    pooled = graph("Where", some, pooled, np.float32(0))  # a text without tokens is a zero vector
    head = model.classifier
    logits = graph("Gemm", pooled, _array(head.weight), _array(head.bias), transB=1)
    return graph.model(logits, head.out_features)


def _to_the_left(graph: Graph, ids: str, there: str) -> tuple[str, str, str]:
    """int32 (batch,) lengths; (batch, length) ids that begin at the first place, and whether a token is there."""
    ones = graph("Cast", there, to=TensorProto.INT32)
    lengths = graph("ReduceSum", ones, [1], keepdims=0)
    size = graph("Squeeze", graph("Shape", ids, start=1))
    places = graph("Range", 0, size, 1)
    first = graph("ArgMax", ones, axis=1)  # (batch, 1)
    moved = graph("GatherElements", ids, graph("Mod", graph("Add", first, places), size), axis=1)
    valid = graph("Less", places, graph("Unsqueeze", graph("Cast", lengths, to=TensorProto.INT64), [1]))
    return lengths, moved, valid


def _pooled(graph: Graph, model: LSTMClassifier, x: str, valid: str, lengths: str) -> str:
    """(length, batch, width), and (length, batch, 1) bool -> (batch, width); anything for a text without tokens."""
    pooling, lowest = model.config.pooling, np.float32(-np.inf)
    if pooling == "max":
        return graph("ReduceMax", graph("Where", valid, x, lowest), [0], keepdims=0)
    x = graph("Where", valid, x, np.float32(0))
    if pooling == "mean":
        count = graph("Unsqueeze", graph("Cast", lengths, to=TensorProto.FLOAT), [1])
        return graph("Div", graph("ReduceSum", x, [0], keepdims=0), count)
    assert pooling == "attention", pooling
    assert model.scores is not None
    scores = graph("Add", graph("MatMul", x, _array(model.scores.weight.T)), _array(model.scores.bias))
    weights = graph("Softmax", graph("Where", valid, scores, lowest), axis=0)
    return graph("ReduceSum", graph("Mul", x, weights), [0], keepdims=0)


def _weights(lstm: Any, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(directions, 4H, inputs), (directions, 4H, H) and (directions, 8H): W, R and B, as ONNX's LSTM wants them."""
    suffixes = ["", "_reverse"] if lstm.bidirectional else [""]
    w, r, b_ih, b_hh = (
        np.stack([_gates(_array(getattr(lstm, f"{kind}_l{layer}{suffix}"))) for suffix in suffixes])
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return w, r, np.concatenate([b_ih, b_hh], 1)


def _gates(weight: np.ndarray) -> np.ndarray:
    """(4H, ...), the gates in ONNX's order i, o, f, g instead of torch's i, f, g, o."""
    i, f, g, o = np.split(weight, 4)
    return np.concatenate([i, o, f, g])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()

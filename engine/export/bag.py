"""The bag of n-grams in ONNX's operators: the hash too, in 64 bits without a sign, whose products wrap."""

import numpy as np
import onnx
from onnx import TensorProto

from penstock.engine.export.graph import Graph
from penstock.engine.models import BagClassifier
from penstock.kernels.bag.plain import HASH_FACTOR, MIX_FACTOR

_FACTOR, _MIX = np.uint64(HASH_FACTOR % 2**64), np.uint64(MIX_FACTOR % 2**64)
_HALF = np.uint64(32)
_END = np.iinfo(np.int64).max


def bag_graph(model: BagClassifier) -> onnx.ModelProto:
    """An n-gram counts where its first and its last token are there, so padding may stand on either side of a text."""
    config, graph = model.config, Graph()
    table = model.embeddings.weight.detach().numpy()
    beyond = config.ngrams - 1
    ids, there = graph.inputs(columns=beyond)

    def following(name: str, n: int) -> str:
        """(batch, length): what stands n places further on."""
        return graph("Slice", name, [n], [n - beyond or _END], [1])

    first, begins = following(ids, 0), following(there, 0)
    hashes, rows, present = _plus_one(graph, first), [graph("Gather", table[: config.vocab_size], first)], [begins]
    buckets = graph.constant(table[config.vocab_size :]) if beyond else ""
    for n in range(1, config.ngrams):
        hashes = graph("Add", graph("Mul", hashes, _FACTOR), _plus_one(graph, following(ids, n)))
        rows.append(graph("Gather", buckets, _bucket(graph, hashes, config.buckets)))
        present.append(graph("And", begins, following(there, n)))
    weights = [graph("Unsqueeze", graph("Cast", each, to=TensorProto.FLOAT), [1]) for each in present]
    total = graph("Sum", *(graph("MatMul", *pair) for pair in zip(weights, rows, strict=True)))  # (batch, 1, width)
    count = graph("Sum", *(graph("ReduceSum", each, [2]) for each in weights))  # (batch, 1, 1)
    mean = graph("Squeeze", graph("Div", total, graph("Max", count, np.float32(1))), [1])
    head = model.classifier
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    return graph.model(graph("Gemm", mean, weight, bias, transB=1), head.out_features)


def _plus_one(graph: Graph, ids: str) -> str:
    return graph("Add", graph("Cast", ids, to=TensorProto.UINT64), np.uint64(1))


def _bucket(graph: Graph, hashes: str, buckets: int) -> str:
    """int64: as `penstock.kernels.bag.plain` computes it."""
    mixed = graph("Mul", graph("BitwiseXor", hashes, _upper(graph, hashes)), _MIX)
    return graph("Cast", _upper(graph, graph("Mul", _upper(graph, mixed), np.uint64(buckets))), to=TensorProto.INT64)


def _upper(graph: Graph, x: str) -> str:
    return graph("BitShift", x, _HALF, direction="RIGHT")

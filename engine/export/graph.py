"""ONNX graphs built node by node."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8  # the oldest with all the operators used, for the sake of old runtimes
BATCH, LENGTH = "batch", "length"
INPUTS = "input_ids", "attention_mask"


class Graph:
    """Nodes and weights as they are asked for; their names are made up.

    An operator's inputs are names that earlier calls gave, "" for one left out, or constants: numbers and arrays, whole
    numbers as int64.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: Any, **attributes: Any) -> list[str]:
        """As a call, of an operator with several outputs."""
        given = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        names = [f"{operator}_{len(self._nodes)}_{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(operator, given, names, **attributes))
        return names

    def inputs(self, columns: int) -> tuple[str, str]:
        """The model's inputs, (batch, length + columns): int64 ids, 0 where no token is, and bool, where one is."""
        ids, mask = (self("Pad", name, [0, 0, 0, columns]) for name in INPUTS)
        there = self("Cast", mask, to=TensorProto.BOOL)
        return self("Where", there, ids, 0), there

    def model(self, logits: str, num_labels: int) -> onnx.ModelProto:
        """From the inputs to `logits`, float32 (batch, num_labels)."""
        self._nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        given = [helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH, LENGTH]) for name in INPUTS]
        made = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, num_labels])]
        graph = helper.make_graph(self._nodes, "classifier", given, made, self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def constant(self, value: Any) -> str:
        """A constant that several nodes share."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

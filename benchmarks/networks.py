"""Write networks with random weights for speed measurements, in addition to the shipped models.

Speed does not depend on the values of weights. The files of both networks follow docs/model-file.md.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sketchbatch_client.atomic import replacing

LABELS = ("bear", "cat", "dog")

Nodes = list[onnx.NodeProto]


class Network:
    """A chain of layers with uint8 (rows, 28, 28) as input; each method adds one layer."""

    def __init__(self) -> None:
        self._nodes: Nodes = []
        self._weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(28)
        self._add("Cast", "bitmaps", to=TensorProto.FLOAT)
        self._add("Mul", "", self._hold(np.float32(1 / 255)))
        self._add("Reshape", "", self._hold(np.array([-1, 1, 28, 28])))

    def conv(self, filters: int, channels: int, *, strides: int = 1, padded: bool = True) -> "Network":
        """Add a 3x3 convolution and ReLU; with `padded`, the output side is ceil(side / strides)."""
        weights = self._hold(self._normal(filters, channels, 3, 3))
        pads = [int(padded)] * 4
        self._add("Conv", "", weights, self._hold(self._bias(filters)), strides=[strides] * 2, pads=pads)
        return self._add("Relu", "")

    def max_pool(self) -> "Network":
        """Add a 2x2 max-pool."""
        return self._add("MaxPool", "", kernel_shape=[2, 2], strides=[2, 2])

    def flatten(self) -> "Network":
        """Add a layer that makes each row a vector."""
        return self._add("Flatten", "", axis=1)

    def dense(self, width: int, units: int, *, relu: bool = True) -> "Network":
        """Add a dense layer and, if `relu` is true, a ReLU."""
        self._add("Gemm", "", self._hold(self._normal(width, units)), self._hold(self._bias(units)))
        return self._add("Relu", "") if relu else self

    def write(self, path: Path) -> Path:
        """Add softmax, write the file atomically and return its path."""
        self._add("Softmax", "", axis=1)
        self._nodes[-1].output[0] = "scores"
        bitmaps = helper.make_tensor_value_info("bitmaps", TensorProto.UINT8, ("rows", 28, 28))
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("rows", len(LABELS)))
        graph = helper.make_graph(self._nodes, path.parent.name, [bitmaps], [scores], self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {"sketchbatch.labels": json.dumps(LABELS), "sketchbatch.name": path.parent.name})
        onnx.checker.check_model(model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            onnx.save(model, partial)
        return path

    def _add(self, kind: str, source: str, *more: str, **attributes: Any) -> "Network":
        """Add a node after `source`, or else after the last node."""
        inputs = [source or self._nodes[-1].output[0], *more]
        self._nodes.append(helper.make_node(kind, inputs, [f"x{len(self._nodes)}"], **attributes))
        return self

    def _hold(self, values: NDArray[np.generic] | np.generic) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        """Draw weights with He's variance, which avoids overflow and slow subnormal numbers."""
        inputs = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        return self._random.normal(0, (2 / inputs) ** 0.5, shape).astype(np.float32)

    def _bias(self, units: int) -> NDArray[np.float32]:
        return self._random.normal(0, 0.1, units).astype(np.float32)


def article() -> Network:
    """Return the article's network, 24 MFLOP per row, with batch normalisation folded into the next dense layer."""
    x = Network().conv(32, 1, padded=False)  # (rows, 32, 26, 26)
    x = x.conv(64, 32, padded=False).max_pool().flatten()  # (rows, 64 * 12 * 12)
    return x.dense(9216, 128).dense(128, 64).dense(64, len(LABELS), relu=False)


def small() -> Network:
    """Return a network of about 1 MFLOP per row, for which serving costs more than the model."""
    x = Network().conv(16, 1, strides=2)  # (rows, 16, 14, 14)
    x = x.conv(16, 16, strides=2).conv(32, 16)  # (rows, 32, 7, 7)
    x = x.conv(32, 32, strides=2).flatten()  # (rows, 32 * 4 * 4)
    return x.dense(512, len(LABELS), relu=False)

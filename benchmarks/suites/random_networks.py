"""Well-known networks with random weights, as ONNX files: an inference costs the same whatever the weights' values.

Weights are int8 by channel or indices of a 16-entry codebook, activations are int8 on grids, and blocks of 4 output x 4
input channels may be zero. The first convolution, depthwise convolutions and the classifier stay dense and int8.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import atomic_file

INPUT_SHAPE = (1, 3, 224, 224)
PRECISIONS = ("int8", "codebook")
BLOCK = 4  # channels of a block, of either kind
_CODEBOOK = np.array([-127, -96, -73, -55, -40, -27, -15, -7, 0, 7, 15, 27, 40, 55, 73, 96], np.int8)
_ZERO = int(np.flatnonzero(_CODEBOOK == 0)[0])
_SIGNED, _POSITIVE = 0, -128  # zero points of grids


class _Builder:
    """Appends nodes to a graph; each method returns the name of its output."""

    def __init__(self, precision: str, block_sparsity: float, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.precision, self.block_sparsity = precision, block_sparsity
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, values: NDArray[Any] | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def grid(self, source: str, scale: float, zero_point: int) -> str:
        parameters = [self.constant(f"{source}.scale", np.float32(scale)),
                      self.constant(f"{source}.zero_point", np.int8(zero_point))]  # fmt: skip
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [source, *parameters]), *parameters])

    def weight(self, shape: tuple[int, ...], prunable: bool) -> str:
        """Weights whose products with inputs of variance 1 have about that variance."""
        name = f"weight{len(self.nodes)}"
        kept = np.ones(shape, bool)
        if prunable and self.block_sparsity:
            blocks = self.random.random((*(-(-size // BLOCK) for size in shape[:2]), *shape[2:])) >= self.block_sparsity
            kept = np.repeat(np.repeat(blocks, BLOCK, 0), BLOCK, 1)[: shape[0], : shape[1]]
        fan_in = np.prod(shape[1:]) * max(float(kept.mean()), 0.01)
        if prunable and self.precision == "codebook":
            indices = np.where(kept, self.random.integers(0, len(_CODEBOOK), shape), _ZERO)
            pairs = indices.astype(np.uint8).reshape(-1, 2)  # every prunable weight has an even number of elements
            packed = (pairs[:, 0] | pairs[:, 1] << 4).tobytes()
            self.initializers.append(helper.make_tensor(f"{name}.index", TensorProto.UINT4, shape, packed, raw=True))
            scale = np.sqrt(2 / fan_in) / _CODEBOOK.std()
            codebook = self.constant(f"{name}.codebook", (_CODEBOOK * scale).astype(np.float32))
            return self.node("Gather", [codebook, self.node("Cast", [f"{name}.index"], to=TensorProto.INT64)])
        values = np.where(kept, self.random.integers(-127, 128, shape), 0).astype(np.int8)
        scales = np.full(shape[0], np.sqrt(2 / fan_in) / 73, np.float32)
        names = [self.constant(f"{name}.int8", values), self.constant(f"{name}.scale", scales)]
        return self.node("DequantizeLinear", names, axis=0)

    def convolution(self, source: str, channels: tuple[int, int], kernel: int, *, stride: int = 1, groups: int = 1,
                    prunable: bool = True) -> str:  # fmt: skip
        weight = self.weight((channels[1], channels[0] // groups, kernel, kernel), prunable and groups == 1)
        bias = self.constant(f"{weight}.bias", self.random.normal(0, 0.1, channels[1]).astype(np.float32))
        return self.node("Conv", [source, weight, bias], kernel_shape=[kernel] * 2, strides=[stride] * 2,
                         pads=[kernel // 2] * 4, group=groups)  # fmt: skip

    def relu(self, source: str) -> str:
        return self.grid(self.node("Relu", [source]), 6 / 255, _POSITIVE)

    def relu6(self, source: str) -> str:
        bounds = [self.constant(f"{source}.{name}", np.float32(value)) for name, value in (("low", 0), ("high", 6))]
        return self.grid(self.node("Clip", [source, *bounds]), 6 / 255, _POSITIVE)

    def classifier(self, source: str, channels: int) -> str:
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [source])])
        bias = self.constant("classifier.bias", self.random.normal(0, 0.1, 1000).astype(np.float32))
        inputs = [self.grid(pooled, 3 / 255, _POSITIVE), self.weight((1000, channels), False), bias]
        return self.node("Gemm", inputs, transB=1)

    def model(self, output: str) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                  for name, shape in (("input", INPUT_SHAPE), (output, (1, 1000)))]  # fmt: skip
        graph = helper.make_graph(self.nodes, "random", values[:1], values[1:], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _resnet18(net: _Builder) -> str:
    """He et al. 2015, table 1."""
    x = net.relu(net.convolution(net.grid("input", 4 / 255, _SIGNED), (3, 64), 7, stride=2, prunable=False))
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inputs = 64
    for outputs in (64, 128, 256, 512):
        for stride in (1 if outputs == 64 else 2, 1):
            y = net.relu(net.convolution(x, (inputs, outputs), 3, stride=stride))
            y = net.convolution(y, (outputs, outputs), 3)
            if inputs != outputs:
                x = net.grid(net.convolution(x, (inputs, outputs), 1, stride=stride), 8 / 255, _SIGNED)
            x, inputs = net.relu(net.node("Add", [y, x])), outputs
    return net.classifier(x, 512)


def _mobilenet_v2(net: _Builder) -> str:
    """Sandler et al. 2018, table 2."""
    x = net.relu6(net.convolution(net.grid("input", 4 / 255, _SIGNED), (3, 32), 3, stride=2, prunable=False))
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, blocks, first_stride in stages:
        for stride in (first_stride, *[1] * (blocks - 1)):
            inner = expansion * inputs
            y = net.relu6(net.convolution(x, (inputs, inner), 1)) if expansion > 1 else x
            y = net.relu6(net.convolution(y, (inner, inner), 3, stride=stride, groups=inner))
            y = net.convolution(y, (inner, outputs), 1)
            y = net.node("Add", [y, x]) if stride == 1 and inputs == outputs else y
            x, inputs = net.grid(y, 8 / 255, _SIGNED), outputs
    return net.classifier(net.relu6(net.convolution(x, (inputs, 1280), 1)), 1280)


NETWORKS: dict[str, Callable[[_Builder], str]] = {"resnet18": _resnet18, "mobilenet_v2": _mobilenet_v2}


def random_network(network: str, precision: str, block_sparsity: float, path: Path, *, seed: int = 0) -> Path:
    """Write a network with random weights.

    Args:
        network: A key of ``NETWORKS``.
        precision: ``int8`` (a scale for each output channel) or ``codebook`` (4-bit indices of 16 values a layer).
        block_sparsity: Share of the blocks of 4 output x 4 input channels that are zero, drawn block by block for each
            place of the window.
        path: ONNX file to write.
        seed: Of the weights.

    Returns:
        ``path``.

    Raises:
        SparrowError: The network or precision is unknown, or the share is not within [0, 1].
    """
    for name, known in ((network, tuple(NETWORKS)), (precision, PRECISIONS)):
        if name not in known:
            raise SparrowError(f"{name!r}", expected=near_names(name, known))
    if not 0 <= block_sparsity <= 1:
        raise SparrowError(f"a block sparsity of {block_sparsity}", expected="a share within [0, 1]")
    net = _Builder(precision, block_sparsity, seed)
    model = net.model(NETWORKS[network](net))
    onnx.checker.check_model(model)
    with atomic_file(path) as temporary:
        onnx.save(model, temporary)
    return path

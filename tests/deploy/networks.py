"""Small quantized ONNX networks, made by hand so that the compiler's tests depend on no other part."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class NetworkBuilder:
    """Collects nodes and initializers; each method appends one construct and returns its output's name."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def operator(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def grid(self, source: str, scale: float = 0.02, zero_point: int = -128) -> str:
        """QuantizeLinear and DequantizeLinear on one int8 grid."""
        scale_name = self.constant(f"{source}.scale", np.float32(scale))
        zero = self.constant(f"{source}.zero_point", np.int8(zero_point))
        quantized = self.operator("QuantizeLinear", [source, scale_name, zero], f"{source}.quantized")
        return self.operator("DequantizeLinear", [quantized, scale_name, zero], f"{source}.grid")

    def codebook_weight(
        self, name: str, shape: tuple[int, ...], entries: int = 16, zero_blocks: float | None = None
    ) -> str:
        """Cast(4-bit index) -> Gather(codebook), with a share of the 4x4 blocks zero."""
        codebook = np.sort(self.random.choice(np.arange(-126, 127), entries, replace=False))
        codebook[0], codebook[entries // 2] = -127, 0
        indices = self.random.integers(0, entries, shape)
        if zero_blocks is not None:
            zero = self.random.random((shape[0] // 4, shape[1] // 4, *shape[2:])) < zero_blocks
            indices[np.repeat(np.repeat(zero, 4, 0), 4, 1)] = int(np.flatnonzero(np.unique(codebook) == 0)[0])
        self.initializers.append(helper.make_tensor(f"{name}.index", TensorProto.UINT4, shape, indices.reshape(-1)))
        self.constant(f"{name}.codebook", (np.unique(codebook) * np.float32(0.002)).astype(np.float32)[:entries])
        cast = self.operator("Cast", [f"{name}.index"], f"{name}.cast", to=TensorProto.INT64)
        return self.operator("Gather", [f"{name}.codebook", cast], name)

    def int8_weight(self, name: str, shape: tuple[int, ...]) -> str:
        """DequantizeLinear(int8) with one scale for each output channel."""
        self.constant(f"{name}.int8", self.random.integers(-127, 128, shape).astype(np.int8))
        self.constant(f"{name}.scale", self.random.uniform(0.001, 0.004, shape[0]).astype(np.float32))
        return self.operator("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], name, axis=0)

    def float_weight(self, name: str, shape: tuple[int, ...]) -> str:
        return self.constant(name, self.random.normal(0, 0.1, shape).astype(np.float32))

    def convolution(
        self, source: str, weight: str, name: str, *, kernel: int = 3, stride: int = 1, **extra: object
    ) -> str:
        pads = extra.pop("pads", [kernel // 2] * 4)
        return self.operator("Conv", [source, weight], name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                             pads=pads, **extra)  # fmt: skip

    def batch_norm(self, source: str, channels: int) -> str:
        statistics = [
            self.random.uniform(0.5, 1.5, channels),
            self.random.normal(0, 0.1, channels),
            self.random.normal(0, 0.1, channels),
            self.random.uniform(0.5, 1.5, channels),
        ]
        names = [self.constant(f"{source}.bn{i}", values.astype(np.float32)) for i, values in enumerate(statistics)]
        return self.operator("BatchNormalization", [source, *names], f"{source}.normalized")

    def model(self, output: str, input_shape: tuple[object, ...], output_shape: tuple[object, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def residual_network(channels: int = 8) -> onnx.ModelProto:
    """Every construct of a quantized CIFAR ResNet: 8-bit ends, codebooks, batch norm, both kinds of shortcut."""
    net = NetworkBuilder()
    image = net.grid("input", 0.02, 0)
    x = net.operator("Relu", [net.batch_norm(net.convolution(image, net.int8_weight("stem", (channels, 3, 3, 3)), "c0"),
                                             channels)], "r0")  # fmt: skip
    x = net.grid(x)
    y = net.convolution(x, net.codebook_weight("block1", (channels, channels, 3, 3)), "c1")
    y = net.grid(net.operator("Relu", [net.batch_norm(y, channels)], "r1"))
    y = net.batch_norm(net.convolution(y, net.codebook_weight("block2", (channels, channels, 3, 3)), "c2"), channels)
    x = net.grid(net.operator("Relu", [net.operator("Add", [y, x], "a2")], "r2"), 0.03)
    y = net.convolution(x, net.codebook_weight("block3", (2 * channels, channels, 3, 3)), "c3", stride=2)
    y = net.grid(net.operator("Relu", [net.batch_norm(y, 2 * channels)], "r3"))
    y = net.batch_norm(net.convolution(y, net.codebook_weight("block4", (2 * channels, 2 * channels, 3, 3)), "c4"),
                       2 * channels)  # fmt: skip
    for name, values in {"start": [0, 0], "end": [2**31, 2**31], "axes": [2, 3], "step": [2, 2]}.items():
        net.constant(name, np.array(values, np.int64))
    net.constant("pads", np.array([0, channels // 2, 0, 0, 0, channels // 2, 0, 0], np.int64))
    shortcut = net.operator("Pad", [net.operator("Slice", [x, "start", "end", "axes", "step"], "slice"), "pads"], "pad")
    x = net.grid(net.operator("Relu", [net.operator("Add", [y, shortcut], "a4")], "r4"), 0.03)
    x = net.operator("Flatten", [net.operator("GlobalAveragePool", [x], "pool")], "flat")
    x = net.grid(x, 0.01)
    net.constant("bias", net.random.normal(0, 0.1, 10).astype(np.float32))
    net.operator("Gemm", [x, net.int8_weight("linear", (10, 2 * channels)), "bias"], "logits", transB=1)
    return net.model("logits", ("batch", 3, 16, 16), ("batch", 10))


def sparse_network() -> onnx.ModelProto:
    """Convolutions and linear layers of which blocks are zero: most, half, and so few that all are kept."""
    net = NetworkBuilder(3)
    x = net.grid("input", 0.02, 0)
    x = net.convolution(x, net.int8_weight("stem", (16, 3, 3, 3)), "c0")
    x = net.grid(net.operator("Relu", [x], "r0"))
    x = net.convolution(x, net.codebook_weight("most", (32, 16, 3, 3), zero_blocks=0.75), "c1", stride=2)
    x = net.grid(net.operator("Relu", [x], "r1"), 0.1)
    x = net.convolution(x, net.codebook_weight("pointwise", (64, 32, 1, 1), zero_blocks=0.9), "c2", kernel=1)
    x = net.grid(net.operator("Relu", [x], "r2"), 0.2)
    x = net.grid(net.operator("Flatten", [net.operator("GlobalAveragePool", [x], "pool")], "flat"), 0.05)
    x = net.operator("Gemm", [x, net.codebook_weight("linear", (32, 64), zero_blocks=0.75)], "hidden", transB=1)
    x = net.grid(net.operator("Relu", [x], "r3"), 0.1)
    net.operator("Gemm", [x, net.codebook_weight("few", (12, 32), zero_blocks=0.2)], "logits", transB=1)
    return net.model("logits", (1, 3, 20, 20), (1, 12))

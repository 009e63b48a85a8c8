"""Writing a network as ONNX, in standard operators alone, with weights in the bits that they need.

What the file holds, and what a compiler may read off it:

* a codebook weight: ``Cast(index) → Gather(codebook, index) → DequantizeLinear``, the index stored as UINT4 (or UINT2
  for four entries), the codebook as int8, the scale one for the layer or, on axis 0, one for each output channel. With
  a float codebook ONNX Runtime 1.32 would fold batch norm into the weight and round the product to int8 by one scale
  for the layer, which changes the network;
* an int8 weight: ``DequantizeLinear(int8, scale)``, one scale for each output channel, axis 0;
* an activation grid: ``QuantizeLinear → DequantizeLinear`` with int8, repeated behind movements of its values;
* batch norm beside a quantized weight stays a node of its own: folding it in would destroy the codebook;
* input ``input`` and output ``logits``, whose first dimension ``batch`` is free.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file
from sparrow.quantize.activations import ActivationGrid, grids
from sparrow.quantize.api import original_weight, quantized_layers
from sparrow.quantize.sharing import CodebookSharing, Int8Sharing, Sharing

# UINT4 came with opset 21, UINT2 with opset 25. The operators in use differ between the two in further types only.
_OPSET, _OPSET_UINT2 = 21, 25
_IR_VERSION_UINT2 = 13

# A grid's DequantizeLinear has a zero point, a weight's has none.
_GRID_INPUTS = 3

# What ONNX Runtime moves pairs of QuantizeLinear and DequantizeLinear across.
_MOVEMENTS = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}

# A stand-in that no optimization of the exporter looks into; replaced by the stored form of a weight afterwards.
_PLACEHOLDER_DOMAIN = "sparrow"
_PLACEHOLDER = "Weight"


def export_onnx(model: nn.Module, input_shape: tuple[int, ...], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network as an ONNX file that stock ONNX Runtime runs.

    Args:
        model: A float network, or one that :func:`sparrow.quantize.api.quantize_` returned. It is not changed.
        input_shape: Shape of one input without the batch, ``(3, 32, 32)`` for example; float32.
        path: File to write or replace.
        metadata: Written into the file's ``metadata_props``; keys start with ``sparrow.`` by convention.

    Raises:
        SparrowError: An activation grid is not calibrated, an operator has no ONNX form, the result does not pass the
            ONNX checker, or the file cannot be written.
    """
    uncalibrated = [name for name, grid in grids(model).items() if not grid.calibrated]
    if uncalibrated:
        raise SparrowError(
            f"{len(uncalibrated)} activation grids have no range, {uncalibrated[0]} for example",
            expected="a calibrated network",
            next_step="call sparrow.quantize.api.calibrate with a few hundred images first",
        )
    proto = _export_graph(_with_placeholders(model), input_shape)
    stored = {name: _StoredWeight(name, *layer) for name, layer in quantized_layers(model).items()}
    _store_weights(proto, stored)
    _repeat_grids(proto)
    _strip(proto)
    helper.set_model_props(proto, dict(metadata))
    proto.producer_name, proto.producer_version = "sparrow", version("sparrow-mobile")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SparrowError(
            f"the exported graph does not pass the ONNX checker: {error}",
            expected="a network of standard layers",
            next_step="export the network's parts one by one to find the layer",
        ) from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


class _PlaceholderWeight(nn.Module):
    """Parametrization that marks a weight in the exported graph."""

    def forward(self, weight: Tensor) -> Tensor:
        name = f"{_PLACEHOLDER_DOMAIN}::{_PLACEHOLDER}"
        return torch.onnx.ops.symbolic(name, (weight,), dtype=weight.dtype, shape=weight.shape, version=1)


class _ExportedGrid(nn.Module):
    """An activation grid as the two ONNX operators that it stands for."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        parameters = (self.scale, self.zero_point)
        rounded = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, *parameters), dtype=torch.int8, shape=x.shape, version=_OPSET
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (rounded, *parameters), dtype=x.dtype, shape=x.shape, version=_OPSET
        )


def _with_placeholders(model: nn.Module) -> nn.Module:
    """Copy a network, with marked weights and ONNX operators in the place of what was quantized."""
    model = copy.deepcopy(model).eval()
    for layer, _ in quantized_layers(model).values():
        # Not remove_parametrizations: it takes the weight off the class, which the copy shares with the original.
        layer.parametrizations["weight"][0] = _PlaceholderWeight()  # type: ignore[index, assignment]
    for name, grid in grids(model).items():
        model.set_submodule(name, _ExportedGrid(grid))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's advice to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export_graph(model: nn.Module, input_shape: tuple[int, ...]) -> ModelProto:
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (torch.zeros(2, *input_shape),),  # a batch of 1 would be taken for a constant
                input_names=["input"],
                output_names=["logits"],
                opset_version=_OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter passes on whatever the network or an operator's conversion raises
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # type: ignore[assignment]
        raise SparrowError(
            f"{type(model).__name__} cannot be exported to ONNX: {str(cause).strip().splitlines()[0]}",
            expected=f"operators that ONNX has, on an input of {('batch', *input_shape)}",
            next_step="check the input's shape, and replace the operator that is named",
        ) from error
    assert program is not None
    return program.model_proto


class _StoredWeight:
    """The nodes and initializers that a layer's weight becomes."""

    def __init__(self, name: str, layer: nn.Module, sharing: Sharing) -> None:
        self.name = f"{name}.weight"
        self.sharing = sharing
        self.weight = original_weight(layer)

    @property
    def bits(self) -> int:
        return self.sharing.bits

    def nodes(self) -> tuple[list[NodeProto], list[TensorProto]]:
        """Build what computes a value called ``name``."""
        if isinstance(self.sharing, CodebookSharing):
            values, scale = self.sharing.int8_codebook()
            packed, index, book, shared, step = (
                f"{self.name}_{part}" for part in ("packed_index", "index", "codebook", "int8", "scale")
            )
            nodes = [
                helper.make_node("Cast", [packed], [index], f"{index}_cast", to=TensorProto.INT32),
                helper.make_node("Gather", [book, index], [shared], f"{self.name}_gather"),
                helper.make_node("DequantizeLinear", [shared, step], [self.name], f"{self.name}_dequantize",
                                 axis=0 if scale.dim() else None),
            ]  # fmt: skip
            return nodes, [
                _pack(packed, self.sharing.indices(self.weight).numpy(), 2 if self.bits == 2 else 4),
                numpy_helper.from_array(values.numpy(), book),
                numpy_helper.from_array(scale.float().numpy(), step),
            ]
        assert isinstance(self.sharing, Int8Sharing)
        values, scale = self.sharing.int8_weight(self.weight)
        inputs = [f"{self.name}_int8", f"{self.name}_scale"]
        node = helper.make_node("DequantizeLinear", inputs, [self.name], f"{self.name}_dequantize", axis=0)
        arrays = (values.numpy(), scale.float().numpy())
        return [node], [numpy_helper.from_array(*pair) for pair in zip(arrays, inputs, strict=True)]


def _pack(name: str, index: NDArray[np.uint8], bits: int) -> TensorProto:
    """Pack indices of 2 or 4 bits into bytes, the first index in a byte's lowest bits."""
    in_byte = 8 // bits
    flat = np.pad(index.reshape(-1), (0, -index.size % in_byte)).reshape(-1, in_byte)
    packed = np.bitwise_or.reduce(flat << (np.arange(in_byte, dtype=np.uint8) * bits), axis=1)
    element = TensorProto.UINT2 if bits == 2 else TensorProto.UINT4
    return helper.make_tensor(name, element, index.shape, packed.astype(np.uint8).tobytes(), raw=True)


def _store_weights(proto: ModelProto, stored: Mapping[str, _StoredWeight]) -> None:
    """Replace each marked weight by its stored form and name its users after the layer, in place."""
    graph = proto.graph
    nodes: list[NodeProto] = []
    weights: dict[str, str] = {}  # the exporter's name of a weight -> its own
    built, layer_calls = set(), set()
    for node in graph.node:
        if node.domain == _PLACEHOLDER_DOMAIN:
            weight = stored[node.input[0].removesuffix(".parametrizations.weight.original")]
            weights[node.output[0]] = weight.name
            if weight.name not in built:  # a layer that is called twice has one weight
                built.add(weight.name)
                new_nodes, initializers = weight.nodes()
                nodes += new_nodes
                graph.initializer.extend(initializers)
            continue
        node.input[:] = [weights.get(name, name) for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            layer = node.input[1].removesuffix(".weight")
            node.name = node.name if layer in layer_calls else layer
            layer_calls.add(layer)
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    opset = _OPSET
    if any(weight.bits == 2 for weight in stored.values()):
        opset, proto.ir_version = _OPSET_UINT2, _IR_VERSION_UINT2
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", opset))


def _repeat_grids(proto: ModelProto) -> None:
    """Repeat a grid behind each operator that only moves its values, as quantized ONNX files conventionally do.

    It changes no value. Without it ONNX Runtime puts a pair there itself, and its release 1.32 refuses the graph that
    results where the grid is int8.
    """
    graph = proto.graph
    dequantizers: dict[str, NodeProto] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "DequantizeLinear" and len(node.input) == _GRID_INPUTS:
            dequantizers[node.output[0]] = node
        elif node.op_type in _MOVEMENTS and (source := dequantizers.get(node.input[0])) is not None:
            output, parameters = node.output[0], source.input[1:]
            node.output[0] = f"{output}_moved"
            rounded = f"{output}_int8"
            inputs = [[node.output[0], *parameters], [rounded, *parameters]]
            again = helper.make_node("DequantizeLinear", inputs[1], [output], f"{output}_dequantize")
            nodes += [helper.make_node("QuantizeLinear", inputs[0], [rounded], f"{output}_quantize"), again]
            dequantizers[output] = again
    del graph.node[:]
    graph.node.extend(nodes)


def _strip(proto: ModelProto) -> None:
    """Remove what only the exporter's developers read: stack traces, source paths, types of inner values."""
    graph = proto.graph
    graph.name, graph.doc_string = "sparrow", ""
    del graph.value_info[:], graph.metadata_props[:], proto.metadata_props[:], proto.functions[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]

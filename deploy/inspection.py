"""What is in an ONNX file or a bundle, as one document for people and machines."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from rich import box
from rich.console import Console
from rich.table import Table

from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.frontend.graph import attributes_of
from sparrow.deploy.frontend_onnx import read_onnx, refusing_broken_models
from sparrow.deploy.operators import Geometry
from sparrow.deploy.rows_cost import relative_rows_cost
from sparrow.kernels.formats import CHANNEL_PACK, BlockPattern, ConvWeights, WeightFormat, pack_weights
from sparrow.kernels.size_report import LayerSize, SizeReport, float_size, packed_size

BITS: dict[int, int] = {TensorProto.UINT2: 2, TensorProto.INT2: 2, TensorProto.UINT4: 4, TensorProto.INT4: 4}

_LARGEST_CODEBOOK = 16  # that kernels have
_LONGEST_TEXT = 400  # characters of a metadata property that are printed


@dataclass(frozen=True)
class _Weight:
    """A layer's constant weight.

    Attributes:
        stored: Its values as the file has them: indices, integers or floats.
        codebook: What indices stand for, or None.
        bits: Bits of a stored value.
        text: The format, for people.
    """

    stored: NDArray[Any]
    codebook: NDArray[Any] | None
    bits: int
    text: str

    @property
    def values(self) -> NDArray[Any]:
        return self.stored if self.codebook is None else self.codebook[self.stored]

    @property
    def is_integer(self) -> bool:
        return self.codebook is not None or self.stored.dtype.kind in "iu"

    def describe(self) -> dict[str, Any]:
        values = self.values
        return {
            "shape": list(values.shape),
            "parameters": int(values.size),
            "weight_format": self.text,
            "bits": self.bits,
            "bytes": -(-int(values.size) * self.bits // 8),
            "distinct_values": int(np.unique(values).size),
            "zero_share": float(np.mean(values == 0)),
        }

    def packed_size(self, name: str, node: onnx.NodeProto) -> LayerSize:
        """Bytes of the layer as the compiler packs it."""
        attributes = attributes_of(node)
        columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transB", 0))
        stored = self.stored.T if columns else self.stored  # output channels first
        if not self.is_integer:
            return float_size(stored, name=name, bias=len(node.input) > 2)
        codebook, groups = self.codebook, attributes.get("group", 1)
        # Bytes depend on which values are zero alone.
        if codebook is None or len(codebook) > _LARGEST_CODEBOOK:
            nonzero = (stored if codebook is None else codebook[stored]) != 0
            values = nonzero.astype(np.int8)
            return _by_rows(packed_size(values, None, name=name, nominal_bits=8, groups=groups), values, None, node)
        bits = max(1, (len(codebook) - 1).bit_length())
        indices, table = stored.astype(np.uint8), (codebook != 0).astype(np.int8)
        size = packed_size(indices, table, name=name, nominal_bits=bits, groups=groups)
        return _by_rows(size, indices, table, node)


def _by_rows(
    size: LayerSize, values: NDArray[Any], table: NDArray[np.int8] | None, node: onnx.NodeProto
) -> LayerSize:  # fmt: skip
    """Count a layer anew if the compiler makes its taps of rows of the window, as it does of first convolutions."""
    attributes = attributes_of(node)
    values = values.reshape(*values.shape[:2], *(1,) * (4 - values.ndim), *values.shape[2:])
    outputs, channels, height, width = values.shape
    if attributes.get("group", 1) > 1 or channels >= CHANNEL_PACK:
        return size
    kind = next(format for format in WeightFormat if format.bits == size.bits)
    nothing = np.zeros(outputs, np.float32)
    weights = ConvWeights(kind, values, table, nothing.astype(np.int32), nothing, nothing)
    stride, dilation = ([1, *attributes.get(name, [1, 1])][-2:] for name in ("strides", "dilations"))
    geometry = Geometry((1, channels, 1, 1), (1, outputs, 1, 1), (height, width), (stride[0], stride[1]),
                        (dilation[0], dilation[1]))  # fmt: skip
    if relative_rows_cost(weights, geometry) >= 1:
        return size
    counted = replace(size, values=values.size * kind.bits // 8, block_map=0, alignment=0)
    packed = pack_weights(replace(weights, pattern=BlockPattern.ROWS))
    return replace(counted, alignment=len(packed) - counted.total)


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Describe a bundle after checking its files' hashes.

    Args:
        path: Bundle folder.

    Returns:
        Its manifest, with ``kind`` "bundle".
    """
    return {"kind": "bundle", **load_bundle(path).manifest}


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Describe an ONNX file: inputs, outputs, and the weight of each convolution and matrix product.

    Args:
        path: ONNX file.

    Returns:
        A document with ``kind`` "onnx".

    Raises:
        SparrowError: The file cannot be read, or contradicts itself.
    """
    with refusing_broken_models(path):
        return _describe_model(path, read_onnx(path))


def _describe_model(path: Path, model: onnx.ModelProto) -> dict[str, Any]:
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.input) > 1:
            if (weight := _weight(node.input[1], initializers, producers)) is not None:
                found.append((node.input[1].removesuffix(".weight"), node, weight))
    operators: dict[str, int] = {}
    for node in graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return {
        "kind": "onnx",
        "file": path.name,
        "bytes": path.stat().st_size,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value(value) for value in graph.input if value.name not in initializers],
        "outputs": [_value(value) for value in graph.output],
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "operators": dict(sorted(operators.items(), key=lambda item: -item[1])),
        "layers": [{"name": name, "operator": node.op_type, **weight.describe()} for name, node, weight in found],
        "size": _size(found),
    }


def _weight(
    name: str, initializers: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]
) -> _Weight | None:
    """Follow a weight to its constant: a codebook, dequantized integers, or plain values."""
    if name in initializers:
        values = numpy_helper.to_array(initializers[name])
        return _Weight(values, None, _bits(initializers[name]), f"{values.dtype}")
    node = producers.get(name)
    if node is None:
        return None
    if node.op_type == "Gather" and node.input[0] in initializers:
        cast = producers.get(node.input[1])
        source = initializers.get(cast.input[0] if cast is not None else node.input[1])
        if source is None:
            return None
        codebook = numpy_helper.to_array(initializers[node.input[0]])
        indices = numpy_helper.to_array(source).astype(np.int64)
        return _Weight(indices, codebook, _bits(source), f"codebook of {codebook.size}")
    if node.op_type == "DequantizeLinear" and node.input[0] not in initializers:
        return _weight(node.input[0], initializers, producers)
    if node.op_type == "DequantizeLinear":
        source = initializers[node.input[0]]
        values = numpy_helper.to_array(source)
        per_channel = numpy_helper.to_array(initializers[node.input[1]]).size > 1
        kind = f"{values.dtype} per {'channel' if per_channel else 'tensor'}"
        return _Weight(values, None, _bits(source), kind)
    if node.op_type == "Transpose" and (weight := _weight(node.input[0], initializers, producers)) is not None:
        order = next((attribute.ints for attribute in node.attribute if attribute.name == "perm"), None)
        return replace(weight, stored=weight.stored.transpose(order))
    return None


def _bits(stored: onnx.TensorProto) -> int:
    return BITS.get(stored.data_type) or numpy_helper.to_array(stored).dtype.itemsize * 8


def _size(layers: list[tuple[str, onnx.NodeProto, _Weight]]) -> dict[str, Any] | None:
    """Bytes of a quantized network's weights; None for a float network, or weights that are none of a layer's."""
    ranks = {weight.stored.ndim for _, _, weight in layers}
    if not any(weight.is_integer for _, _, weight in layers) or not ranks <= {2, 3, 4}:
        return None
    report = SizeReport(tuple(weight.packed_size(name, node) for name, node, weight in layers))
    return {**report.to_dict(), "text": report.lines()}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    dimensions = value.type.tensor_type.shape.dim
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dimensions]
    return {"name": value.name, "shape": shape, "dtype": TensorProto.DataType.Name(value.type.tensor_type.elem_type)}


def print_inspection(document: dict[str, Any]) -> None:
    """Print what ``inspect_bundle`` or ``inspect_onnx`` returned as tables on stdout."""
    console = Console(markup=False)  # names are the file's own, and may look like markup
    if document["kind"] == "bundle":
        by = f"Sparrow {document.get('sparrow_version', 'unknown')}"
        console.print(f"bundle {document['name']} for {document['target']}, {by}")
        console.print(f"weights {document['weights_bytes']:,} bytes, scratch {document['arena_bytes']:,} bytes")
    else:
        console.print(f"{document['file']}: {document['bytes']:,} bytes, opset {document['opset']}")
        console.print("operators: " + ", ".join(f"{name} {count}" for name, count in document["operators"].items()))
    for kind in ("inputs", "outputs"):
        for value in document[kind]:
            console.print(f"{kind[:-1]} {value['name']} {value['shape']} {value['dtype']}")
    if document["metadata"]:
        properties = (f"{key}={_shortened(value)}" for key, value in document["metadata"].items())
        console.print("metadata: " + ", ".join(properties))
    console.print(_layer_table(document))
    for line in (document.get("size") or {}).get("text", ()):
        console.print(line)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ... ({len(text)} characters)"


def _layer_table(document: dict[str, Any]) -> Table:
    bundle = document["kind"] == "bundle"
    table = Table(box=box.SIMPLE)
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "weights", "values", "zeros", "bytes", *(["MACs"] if bundle else [])):
        table.add_column(heading, justify="right")
    if bundle:
        table.add_column("kernel and why", overflow="fold")
    for layer in document["layers"]:
        if bundle:
            shape = f"{'x'.join(map(str, layer['input_shape'][1:]))} > {'x'.join(map(str, layer['output_shape'][1:]))}"
            why = f"{layer['kernel']}: {layer['reason']}"
            size, extra = layer["packed_bytes"], [f"{layer['multiply_accumulates']:,}", why]
        else:
            shape, size, extra = "x".join(map(str, layer["shape"])), layer["bytes"], []
        table.add_row(layer["name"], shape, layer["weight_format"], str(layer["distinct_values"]),
                      f"{layer['zero_share']:.1%}", f"{size:,}", *extra)  # fmt: skip
    return table

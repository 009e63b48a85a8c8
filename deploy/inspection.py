"""What is in an ONNX file or a bundle, as one document for people and machines."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from rich import box
from rich.console import Console
from rich.table import Table

from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.frontend_onnx import read_onnx, refusing_broken_models

BITS: dict[int, int] = {TensorProto.UINT2: 2, TensorProto.INT2: 2, TensorProto.UINT4: 4, TensorProto.INT4: 4}


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
    layers = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.input) > 1:
            if (layer := _weight(node.input[1], initializers, producers)) is not None:
                layers.append({"name": node.input[1].removesuffix(".weight"), "operator": node.op_type, **layer})
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
        "layers": layers,
    }


def _weight(
    name: str, initializers: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]
) -> dict[str, Any] | None:
    """Follow a weight to its constant: a codebook, dequantized integers, or plain values."""
    if name in initializers:
        values = numpy_helper.to_array(initializers[name])
        return _describe(values, initializers[name], f"{values.dtype}")
    node = producers.get(name)
    if node is None:
        return None
    if node.op_type == "Gather" and node.input[0] in initializers:
        cast = producers.get(node.input[1])
        source = initializers.get(cast.input[0] if cast is not None else node.input[1])
        if source is None:
            return None
        codebook = numpy_helper.to_array(initializers[node.input[0]])
        values = codebook[numpy_helper.to_array(source).astype(np.int64)]
        return _describe(values, source, f"codebook of {codebook.size}")
    if node.op_type == "DequantizeLinear" and node.input[0] not in initializers:
        return _weight(node.input[0], initializers, producers)
    if node.op_type == "DequantizeLinear":
        source = initializers[node.input[0]]
        values = numpy_helper.to_array(source)
        per_channel = numpy_helper.to_array(initializers[node.input[1]]).size > 1
        return _describe(values, source, f"{values.dtype} per {'channel' if per_channel else 'tensor'}")
    if node.op_type == "Transpose":
        return _weight(node.input[0], initializers, producers)
    return None


def _describe(values: np.ndarray, stored: onnx.TensorProto, text: str) -> dict[str, Any]:
    bits = BITS.get(stored.data_type) or numpy_helper.to_array(stored).dtype.itemsize * 8
    return {
        "shape": list(values.shape),
        "parameters": int(values.size),
        "weight_format": text,
        "bits": bits,
        "bytes": -(-int(values.size) * bits // 8),
        "distinct_values": int(np.unique(values).size),
        "zero_share": float(np.mean(values == 0)),
    }


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
        console.print("metadata: " + ", ".join(f"{key}={value}" for key, value in document["metadata"].items()))
    console.print(_layer_table(document))


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

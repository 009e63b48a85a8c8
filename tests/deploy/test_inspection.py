"""What is told of ONNX files: each layer's weight, and the bytes of a quantized network."""

import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sparrow.deploy.cli.inspect import command
from sparrow.deploy.inspection import inspect_onnx
from sparrow.kernels.formats import BlockPattern, ConvWeights, WeightFormat, pack_weights
from sparrow.quantize.api import calibrate, make_pruner, quantize_
from sparrow.quantize.configs import DgmsConfig
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.size_report import size_report
from sparrow.quantize.sparsity import SparsityConfig

from .networks import NetworkBuilder

torch.set_num_threads(1)


@pytest.mark.parametrize(("bits", "sparsity"), [(2, None), (3, 0.75), (4, 0.5)])
def test_the_bytes_are_those_that_quantization_reports(tmp_path, bits, sparsity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3, groups=4),
                        nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(32, 10))  # fmt: skip
    config = DgmsConfig(bits=bits, layers_float=("2",), sparsity=sparsity and SparsityConfig(
        sparsity=sparsity, criterion="magnitude", schedule="one-shot", layers_dense=("0", "9")))  # fmt: skip
    model = quantize_(net.eval(), config)
    if (pruner := make_pruner(model, config, 0)) is not None:
        pruner.step(0)
    calibrate(model, [torch.randn(4, 3, 12, 12)], config)
    export_onnx(model, (3, 12, 12), tmp_path / "net.onnx", {"sparrow.class_names": "x" * 1000})
    found, expected = inspect_onnx(tmp_path / "net.onnx")["size"], size_report(model)
    assert {layer["name"]: layer["total"] for layer in found["layers"]} == {
        layer.name: layer.total for layer in expected.layers
    }
    assert found["paper_ratio"] == pytest.approx(expected.paper_ratio)
    printed = CliRunner().invoke(command, [str(tmp_path / "net.onnx")]).stdout.replace("\n", " ")
    assert f"packed weights {expected.total:,} bytes" in printed and "as papers count" in printed
    assert "x" * 1000 not in printed and "(1000 characters)" in printed


def test_columns_are_output_channels_of_a_matrix_product(tmp_path):
    net = NetworkBuilder()
    output = net.operator("MatMul", ["input", net.int8_weight("w", (24, 6))], "y")
    onnx.save(net.model(output, (1, 24), (1, 6)), tmp_path / "net.onnx")
    (layer,) = inspect_onnx(tmp_path / "net.onnx")["size"]["layers"]
    # 6 output channels fill two packs of 4.
    assert (layer["weights"], layer["bits"], layer["values"], layer["constants"]) == (144, 8, 144, 6 * 12)
    assert layer["alignment"] >= 2 * 24


@pytest.mark.parametrize("weight", ["int8_weight", "codebook_weight"])
@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "pattern"),
    [(64, 7, 2, BlockPattern.ROWS), (32, 3, 2, BlockPattern.ROWS), (8, 3, 1, BlockPattern.DENSE)],
)
def test_a_first_convolution_takes_what_the_compiler_makes_of_it(tmp_path, weight, outputs, kernel, stride, pattern):
    net = NetworkBuilder()
    shape = (outputs, 3, kernel, kernel)
    output = net.convolution("input", getattr(net, weight)("w", shape), "y", kernel=kernel, stride=stride)
    size = 16 // stride
    onnx.save(net.model(output, (1, 3, 16, 16), (1, outputs, size, size)), tmp_path / "net.onnx")
    (layer,) = inspect_onnx(tmp_path / "net.onnx")["size"]["layers"]
    kind, table = WeightFormat.QS8C, None
    if weight == "codebook_weight":
        kind, table = WeightFormat.CB4T, np.arange(16, dtype=np.int8)
    zeros = np.zeros(outputs, np.float32)
    weights = ConvWeights(kind, np.ones(shape, kind.dtype), table, zeros.astype(np.int32), zeros, zeros, 1, pattern)
    assert layer["total"] == len(pack_weights(weights))
    assert layer["values"] == weights.values.size * kind.bits // 8


def test_a_float_network_has_no_packed_size(tmp_path):
    export_onnx(nn.Linear(4, 2), (4,), tmp_path / "net.onnx", {})
    document = json.loads(CliRunner().invoke(command, [str(tmp_path / "net.onnx"), "--json"]).stdout)
    assert document["size"] is None and document["layers"][0]["weight_format"] == "float32"

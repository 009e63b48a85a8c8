"""``sparrow compile``: its options, and what they do to a network."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.cli.compile import command

from ..networks import NetworkBuilder


@pytest.mark.parametrize(
    "arguments",
    [["--quantize", "int8"], ["--calibrate", "photos"], ["--quantize", "int4"], ["--pixel-mean", "1,2"],
     ["--input-shape", "x=1,two"], ["--pixel-mean", "1"], ["--samples", "7"]],
)  # fmt: skip
def test_options_that_do_not_fit_are_usage_errors(arguments):
    result = CliRunner().invoke(command, ["network.onnx", "--target", "armv8-a", "-o", "out", *arguments])
    assert result.exit_code == 2


def float_network() -> onnx.ModelProto:
    net = NetworkBuilder()
    x = "input"
    for index, channels in enumerate((3, 8, 8)):
        x = net.convolution(x, net.float_weight(f"w{index}", (8, channels, 3, 3)), f"c{index}")
        x = net.operator("Relu", [x], f"r{index}")
    x = net.operator("Flatten", [net.operator("GlobalAveragePool", [x], "pool")], "flat")
    return net.model(net.operator("MatMul", [x, net.float_weight("w3", (8, 5))], "y"), ("batch", 3, 12, 12), (1, 5))


@pytest.mark.tvm
@pytest.mark.qemu
def test_a_float_network_becomes_a_verified_int8_bundle(tmp_path):
    from sparrow.benchmarks.harness import verify

    onnx.save(float_network(), tmp_path / "float.onnx")
    images = np.random.default_rng(0).normal(0, 1, (16, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "samples.npy", images)
    result = CliRunner().invoke(command, [
        str(tmp_path / "float.onnx"), "--target", "cortex-a76", "-o", str(tmp_path / "bundle"),
        "--quantize", "int8", "--calibrate", str(tmp_path / "samples.npy"),
    ], catch_exceptions=False)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "quantized 4 layers to int8 on 16 samples" in result.stderr
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest["name"] == "float"
    assert [layer["activations"] for layer in bundle.manifest["layers"]] == ["int8"] * 4
    assert [layer["output"] for layer in bundle.manifest["layers"][:2]] == ["int8"] * 2
    verify(tmp_path / "bundle", images, cpu="cortex-a76").require_ok()


@pytest.mark.tvm
@pytest.mark.qemu
def test_a_network_in_half_precision_is_verified_with_its_own_bound(tmp_path):
    from sparrow.benchmarks.harness import verify

    onnx.save(float_network(), tmp_path / "float.onnx")
    arguments = [str(tmp_path / "float.onnx"), "--target", "cortex-a76", "-o", str(tmp_path / "bundle")]
    result = CliRunner().invoke(command, [*arguments, "--float-precision", "fp16"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert load_bundle(tmp_path / "bundle").manifest["float_precision"] == "fp16"
    images = np.random.default_rng(0).normal(0, 1, (4, 3, 12, 12)).astype(np.float32)
    for cpu in ("cortex-a53", "cortex-a76"):
        verified = verify(tmp_path / "bundle", images, cpu=cpu)
        verified.require_ok()
        assert "half precision, of which there are 4" in verified.bound and not verified.integer
        assert verified.max_relative_error > 1e-5


@pytest.mark.tvm
def test_a_cut_network_brings_its_own_reference(tmp_path):
    onnx.save(float_network(), tmp_path / "float.onnx")
    arguments = [str(tmp_path / "float.onnx"), "--target", "armv8-a", "-o", str(tmp_path / "cut"), "--outputs", "r1"]
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    bundle = load_bundle(tmp_path / "cut")
    assert [info["name"] for info in bundle.manifest["outputs"]] == ["r1"]
    assert [value.name for value in onnx.load(bundle.model).graph.output] == ["r1"]

"""ONNX to bundle to aarch64, compared with ONNX Runtime."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from sparrow.benchmarks.harness import HALF_LAYER_ERROR
from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.compiler import c_identifier, compile_model
from sparrow.kernels.errors import SparrowError

from .networks import NetworkBuilder, residual_network, sparse_network

pytestmark = [pytest.mark.tvm, pytest.mark.qemu]


def reference(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def run_bundle(folder: Path, images: np.ndarray, cpu: str, tmp_path: Path, *arguments: str) -> np.ndarray:
    images.tofile(tmp_path / "in.bin")
    command = ["qemu-aarch64", "-cpu", cpu, folder / "sparrow_run", "--input", tmp_path / "in.bin", "--output",
               tmp_path / "out.bin", *arguments]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)
    return np.fromfile(tmp_path / "out.bin", np.float32)


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max,sve=off,sme=off"])
def test_integer_network_gives_the_reference_results_on_each_core(residual_bundle, cpu, tmp_path):
    images = np.random.default_rng(1).normal(0, 1, (3, 3, 16, 16)).astype(np.float32)
    outputs = run_bundle(residual_bundle, images, cpu, tmp_path).reshape(3, 10)
    # Every layer but the last is exact integer arithmetic; a rounding tie may move a value by one step of its grid.
    np.testing.assert_allclose(outputs, reference(residual_network(), images), atol=0.02)
    assert (outputs.argmax(1) == reference(residual_network(), images).argmax(1)).all()


def test_zero_blocks_are_left_out_and_do_not_change_the_result(tmp_path, save_model):
    bundle = compile_model(save_model(sparse_network()), tmp_path / "bundle", target="armv8-a")
    images = np.random.default_rng(1).normal(0, 1, (4, 3, 20, 20)).astype(np.float32)
    expected = reference(sparse_network(), images)
    results = [run_bundle(bundle.path, images, cpu, tmp_path).reshape(4, 12)
               for cpu in ("cortex-a53", "cortex-a76", "max,sve=off,sme=off")]  # fmt: skip
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    # Codebooks are rounded to int8; a tie of a grid may fall to the other side.
    assert np.abs(results[0] - expected).max() < 0.05 * np.abs(expected).max()
    layers = {layer["name"]: layer for layer in bundle.manifest["layers"]}
    assert [name for name, layer in layers.items() if "skipped" in layer["reason"]] == ["most", "pointwise", "linear"]
    assert "too few to skip" in layers["few"]["reason"]
    assert layers["linear"]["kernel"] == "spw_conv_clamp_qa8t_qa8t_qs8c_8x4__neon"
    assert layers["few"]["kernel"] == "spw_gemv_clamp_f32_qa8t_qs8c_1x4__neon"
    # 144 blocks of 8 bytes, of which a quarter is stored with a step each, beside 64 bytes and more a section.
    assert layers["most"]["packed_bytes"] < 0.6 * 32 * 16 * 9 / 2 + 8 * 64


def test_threads_do_not_change_the_result(residual_bundle, tmp_path):
    images = np.random.default_rng(1).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    one = run_bundle(residual_bundle, images, "cortex-a76", tmp_path)
    four = run_bundle(residual_bundle, images, "cortex-a76", tmp_path, "--threads", "4")
    np.testing.assert_array_equal(one, four)


def float_network() -> onnx.ModelProto:
    """Depthwise, grouped, dilated and asymmetric convolutions, odd channel counts, and operators left to TVM."""
    net = NetworkBuilder()
    x = net.convolution("input", net.float_weight("w0", (6, 3, 3, 3)), "c0", stride=2, pads=[0, 1, 1, 0])
    x = net.operator("Clip", [x, net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))], "r0")
    x = net.convolution(x, net.float_weight("w1", (6, 1, 3, 3)), "c1", group=6)
    x = net.operator("Sigmoid", [x], "s1")
    x = net.convolution(x, net.float_weight("w2", (8, 3, 1, 1)), "c2", kernel=1, group=2, pads=[0] * 4)
    y = net.convolution(x, net.float_weight("w3", (8, 8, 3, 3)), "c3", pads=[2] * 4, dilations=[2, 2])
    x = net.operator("Concat", [net.operator("HardSwish", [net.operator("Add", [x, y], "a")], "h"), x], "cat", axis=1)
    x = net.operator("MaxPool", [x], "p", kernel_shape=[2, 2], strides=[2, 2])
    x = net.operator("Flatten", [x], "f")
    x = net.operator("MatMul", [x, net.float_weight("w4", (256, 5))], "m")
    return net.model(net.operator("Softmax", [x], "probabilities", axis=-1), (1, 3, 16, 16), (1, 5))


def test_float_network_with_operators_of_both_kinds(tmp_path, save_model):
    bundle = compile_model(save_model(float_network()), tmp_path / "bundle", target="armv8-a")
    images = np.random.default_rng(2).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    outputs = run_bundle(bundle.path, images, "cortex-a53", tmp_path).reshape(2, 5)
    np.testing.assert_allclose(outputs, reference(float_network(), images), rtol=1e-5, atol=1e-6)
    assert len(bundle.manifest["layers"]) == 5


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    onnx.save(float_network(), folder / "network.onnx")
    return compile_model(folder / "network.onnx", folder / "bundle", target="cortex-a76", float_precision="fp16")


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_half_precision_is_right_on_cores_with_and_without_it(half_bundle, cpu, tmp_path):
    images = np.random.default_rng(2).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    outputs = run_bundle(half_bundle.path, images, cpu, tmp_path).reshape(2, 5)
    expected = reference(float_network(), images)
    assert 1e-6 < np.abs(outputs - expected).max() < HALF_LAYER_ERROR * 5**0.5


def test_manifest_says_what_is_half(half_bundle):
    manifest = half_bundle.manifest
    assert manifest["float_precision"] == "fp16"
    assert {(layer["weight_format"], layer["activations"]) for layer in manifest["layers"]} == {("f16", "float16")}
    assert all(layer["kernel"].endswith("__neon_fp16") for layer in manifest["layers"])


def test_an_unknown_precision_is_refused(tmp_path, save_model):
    with pytest.raises(SparrowError, match="'fp61'"):
        compile_model(save_model(float_network()), tmp_path / "out", target="cortex-a76", float_precision="fp61")


def test_the_same_network_gives_the_same_bytes(residual_bundle, tmp_path, save_model):
    again = compile_model(save_model(residual_network()), tmp_path / "again", target="cortex-a76")
    assert again.manifest["files"] == load_bundle(residual_bundle).manifest["files"]


def test_a_bundle_is_kept_while_nothing_changes(half_bundle, tmp_path, save_model):
    folder = tmp_path / "bundle"
    shutil.copytree(half_bundle.path, folder)
    before = (folder / "sparrow_run").stat().st_ino

    def compile_again(**options):
        phases = []
        options = {"target": "cortex-a76", "float_precision": "fp16", "on_phase": phases.append, **options}
        compile_model(save_model(float_network()), folder, **options)
        return len(phases) > 2

    assert not compile_again() and (folder / "sparrow_run").stat().st_ino == before
    with (folder / "libnetwork.so").open("ab") as file:
        file.write(b"damaged")
    assert compile_again()
    assert (folder / "sparrow_run").stat().st_ino != before
    assert load_bundle(folder).manifest == half_bundle.manifest
    assert not compile_again() and compile_again(float_precision="fp32")


def test_manifest_names_each_layer_and_its_format(residual_bundle):
    layers = load_bundle(residual_bundle).manifest["layers"]
    assert [layer["name"] for layer in layers] == ["stem", "block1", "block2", "block3", "block4", "linear"]
    assert [layer["weight_format"] for layer in layers] == ["qs8c", *["cb4t"] * 4, "qs8c"]
    assert all(layer["reason"] for layer in layers)
    convolution = "spw_conv_clamp_qa8t_qa8t_qs8c_16x4__neon_dotprod"
    assert [layer["kernel"] for layer in layers[:-1]] == [convolution] * 5
    assert layers[-1]["kernel"] == "spw_gemv_clamp_f32_qa8t_qs8c_1x4__neon_dotprod"


@pytest.mark.parametrize("name", ["libnetwork.a", "libnetwork.so", "sparrow_run", "model.onnx", "network.h"])
def test_a_changed_byte_is_refused_and_the_hash_named(residual_bundle, tmp_path, name):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in residual_bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    expected = json.loads((copy / "manifest.json").read_text())["files"][name]["sha256"]
    with pytest.raises(SparrowError, match=f"{name} was changed: SHA-256") as caught:
        load_bundle(copy)
    assert expected in caught.value.expected


def test_a_failed_compilation_leaves_the_earlier_bundle_alone(residual_bundle, tmp_path):
    before = sorted(residual_bundle.parent.iterdir())
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(SparrowError):
        compile_model(broken, residual_bundle, target="cortex-a76")
    assert sorted(residual_bundle.parent.iterdir()) == before
    load_bundle(residual_bundle)


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path, save_model):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SparrowError, match="Sparrow did not make it"):
        compile_model(save_model(residual_network()), tmp_path / "mine", target="cortex-a76")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_unknown_target_lists_the_nearest(tmp_path, save_model):
    with pytest.raises(SparrowError) as caught:
        compile_model(save_model(residual_network()), tmp_path / "out", target="cortex-a67")
    assert "did you mean 'cortex-a76'" in caught.value.expected


@pytest.mark.parametrize(("stem", "name"), [("r20", "r20"), ("My Net-2", "my_net_2"), ("20", "net_20")])
def test_c_identifiers(stem, name):
    assert c_identifier(stem) == name


def test_nothing_left_of_a_name_is_an_error():
    with pytest.raises(SparrowError):
        c_identifier("日本")


def test_a_call_takes_any_number_of_tensors(tmp_path, save_model):
    net = NetworkBuilder()
    parts = [net.operator("Tanh", [net.convolution("input", net.float_weight(f"w{index}", (1, 3, 1, 1)), f"c{index}",
                                                   kernel=1)], f"t{index}") for index in range(70)]  # fmt: skip
    model = net.model(net.operator("Concat", parts, "joined", axis=1), (1, 3, 2, 2), (1, 70, 2, 2))
    bundle = compile_model(save_model(model), tmp_path / "out", target="cortex-a76")
    images = np.random.default_rng(2).normal(0, 1, (1, 3, 2, 2)).astype(np.float32)
    outputs = run_bundle(bundle.path, images, "cortex-a53", tmp_path).reshape(1, 70, 2, 2)
    np.testing.assert_allclose(outputs, reference(model, images), rtol=1e-5, atol=1e-6)

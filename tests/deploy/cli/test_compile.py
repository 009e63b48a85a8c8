"""``sparrow compile``: its options, and what it takes to calibrate."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.cli.calibration_inputs import Preprocessing, calibration_inputs, read_image
from sparrow.deploy.cli.compile import command
from sparrow.deploy.frontend.network import TensorInfo
from sparrow.kernels.errors import SparrowError

from ..networks import NetworkBuilder

IMAGE = (TensorInfo("image", (1, 3, 8, 10), "float32"),)
PAIR = (TensorInfo("a", (1, 4), "float32"), TensorInfo("b", (1, 2), "int64"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (20 + index, 16), (10 * index, 100, 200)).save(folder / f"{index}.png")
    return folder


def test_images_are_fitted_normalized_and_spread_over_the_folder(photos):
    samples = calibration_inputs(photos, IMAGE, Preprocessing((10, 20, 30), (2, 2, 2)), 3)
    assert [sample["image"].shape for sample in samples] == [(1, 3, 8, 10)] * 3
    reds = [float(sample["image"][0, 0, 0, 0]) for sample in samples]
    assert reds == [(0 - 10) / 2, (20 - 10) / 2, (40 - 10) / 2]
    assert samples[0]["image"][0, 2].max() == (200 - 30) / 2


def test_channel_order_is_that_of_the_network(photos):
    sample = calibration_inputs(photos, IMAGE, Preprocessing((1, 2, 3), (1, 1, 1), "bgr"), 1)[0]["image"][0]
    assert [float(channel[0, 0]) for channel in sample] == [200 - 1, 100 - 2, 0 - 3]


def test_an_image_keeps_its_middle(tmp_path):
    picture = np.zeros((4, 12, 3), np.uint8)
    picture[:, 4:8] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 4, 4) == 255).all()


def test_arrays_for_one_input_and_for_several(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(480, dtype=np.float64).reshape(2, 3, 8, 10))
    samples = calibration_inputs(tmp_path / "one.npy", IMAGE, Preprocessing(), 10)
    assert [(sample["image"].shape, sample["image"].dtype) for sample in samples] == [((1, 3, 8, 10), np.float32)] * 2
    np.savez(tmp_path / "two.npz", a=np.ones((3, 4)), b=np.ones((3, 2), np.int64))
    assert calibration_inputs(tmp_path / "two.npz", PAIR, Preprocessing(), 2)[1]["b"].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "content", "inputs", "message"),
    [
        ("missing.npy", None, IMAGE, "does not exist"),
        ("text.npy", b"hello", IMAGE, "is not a NumPy file"),
        ("short.npy", np.ones((2, 3, 8, 9)), IMAGE, "has the shape"),
        ("nan.npy", np.full((1, 3, 8, 10), np.nan), IMAGE, "no finite numbers"),
        ("one.npz", {"a": np.ones((1, 4))}, PAIR, "has nothing for the input b"),
        ("uneven.npz", {"a": np.ones((1, 4)), "b": np.ones((2, 2))}, PAIR, "differ in length"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, name, content, inputs, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(SparrowError, match=message):
        calibration_inputs(path, inputs, Preprocessing(), 4)


def test_folders_that_cannot_be_used(tmp_path, photos):
    with pytest.raises(SparrowError, match="the network takes a float32"):
        calibration_inputs(photos, PAIR, Preprocessing(), 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SparrowError, match="holds no image"):
        calibration_inputs(tmp_path / "empty", IMAGE, Preprocessing(), 4)
    (photos / "0.png").write_bytes(b"no image")
    with pytest.raises(SparrowError, match=r"0\.png cannot be decoded"):
        calibration_inputs(photos, IMAGE, Preprocessing(), 5)


@pytest.mark.parametrize(
    "arguments",
    [["--quantize", "int8"], ["--calibrate", "photos"], ["--quantize", "int4"], ["--pixel-mean", "1,2"],
     ["--input-shape", "x=1,two"]],
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
def test_a_cut_network_brings_its_own_reference(tmp_path):
    onnx.save(float_network(), tmp_path / "float.onnx")
    arguments = [str(tmp_path / "float.onnx"), "--target", "armv8-a", "-o", str(tmp_path / "cut"), "--outputs", "r1"]
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    bundle = load_bundle(tmp_path / "cut")
    assert [info["name"] for info in bundle.manifest["outputs"]] == ["r1"]
    assert [value.name for value in onnx.load(bundle.model).graph.output] == ["r1"]

"""Whole jobs on the bundled digits: what is pruned stays pruned up to the ONNX file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from sparrow.quantize.configs import DgmsConfig, Int8Config
from sparrow.quantize.data import ImageData, load_data
from sparrow.quantize.recipes import export_checkpoint, load_network, quantize_network, train_network
from sparrow.quantize.sparsity import SparsityConfig
from sparrow.quantize.train import TrainConfig, predict_logits

TUNE = TrainConfig(epochs=2, batch_size=64, learning_rate=0.02, threads=1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.pt"
    torch.set_num_threads(1)
    train_network("digits", data, TrainConfig(epochs=5, batch_size=64, learning_rate=0.1, threads=1), path)
    return path


def exported_weights(path: Path) -> dict[str, np.ndarray]:
    """Weights of the convolutions as the file computes them, by the shape that tells the layers apart."""
    model = onnx.load(path)
    names = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    constants = {tensor.name for tensor in model.graph.initializer}
    for name in names:
        if name not in constants:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    shape = [dimension.dim_value or 1 for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    outputs = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: np.zeros(shape, np.float32)})
    values = dict(zip([output.name for output in model.graph.output], outputs, strict=True))
    values |= {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {f"conv{number}": values[name] for number, name in enumerate(names, 1)}


def zero_blocks(weight: np.ndarray) -> float:
    """Share of the 4x4 blocks that are zero; the channels divide."""
    blocks = weight.reshape(weight.shape[0] // 4, 4, weight.shape[1] // 4, 4, -1)
    return float((~blocks.any(axis=(1, 3))).mean())


def test_block_dgms_by_sensitivity_keeps_accuracy_and_its_zeros(data: ImageData, trained: Path, tmp_path: Path) -> None:
    sparsity = SparsityConfig(sparsity=0.5, criterion="zero-component", distribution="sensitivity", interval=4,
                              penalty=0.01)  # fmt: skip
    report = quantize_network("digits", data, trained, DgmsConfig(bits=4, sparsity=sparsity), TUNE, tmp_path / "x.pt",
                              calibration_images=128)  # fmt: skip
    assert report.start_accuracy is not None and report.test_accuracy > report.start_accuracy - 6
    pruned = {layer.name: layer.zero_blocks for layer in report.layers if layer.name in ("conv2", "conv3", "conv4")}
    blocks = {"conv2": 32 * 16, "conv3": 32 * 32, "conv4": 32 * 32}
    total = np.average([pruned[name] for name in blocks], weights=list(blocks.values()))
    assert total >= 0.49 and max(pruned.values()) - min(pruned.values()) > 0.05
    export_checkpoint(tmp_path / "x.pt", tmp_path / "x.onnx")
    weights = exported_weights(tmp_path / "x.onnx")
    assert {name: zero_blocks(weights[name]) for name in pruned} == pytest.approx(pruned)


def test_network_without_its_channels_is_smaller_everywhere(data: ImageData, trained: Path, tmp_path: Path) -> None:
    sparsity = SparsityConfig(sparsity=0.25, criterion="taylor", distribution="global", interval=4)
    report = quantize_network("digits", data, trained, Int8Config(sparsity=sparsity), TUNE, tmp_path / "x.pt",
                              calibration_images=128, removed_channels=0.25)  # fmt: skip
    assert report.start_accuracy is not None and report.test_accuracy > report.start_accuracy - 6
    shapes = {layer.name: layer.shape[:2] for layer in report.layers}
    assert shapes == {"conv1": (12, 1), "conv2": (24, 12), "conv3": (24, 24), "conv4": (24, 24), "linear": (10, 24)}
    model, _ = load_network(tmp_path / "x.pt")
    assert float(np.mean(predict_logits(model, data).argmax(1).numpy() == data.test_labels)) * 100 == pytest.approx(
        report.test_accuracy
    )
    export_checkpoint(tmp_path / "x.pt", tmp_path / "x.onnx")
    weights = exported_weights(tmp_path / "x.onnx")
    assert {name: weight.shape[:2] for name, weight in weights.items()} == {
        name: shape for name, shape in shapes.items() if name != "linear"
    }
    assert sum(zero_blocks(weights[name]) > 0 for name in ("conv2", "conv3", "conv4")) >= 1


def test_without_training_the_norms_are_measured_again(data: ImageData, trained: Path, tmp_path: Path) -> None:
    sparsity = SparsityConfig(sparsity=0.5, schedule="one-shot", distribution="per-layer", criterion="magnitude")
    report = quantize_network("digits", data, trained, Int8Config(sparsity=sparsity), None, tmp_path / "x.pt",
                              calibration_images=256)  # fmt: skip
    dense = quantize_network("digits", data, trained, Int8Config(), None, tmp_path / "y.pt", calibration_images=256)
    assert dense.test_accuracy > report.test_accuracy > 60

"""Pruning in float before quantization, on the bundled digits."""

import dataclasses

import pytest
import torch
from torch.nn.utils import parametrize

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.api import original_weight, quantized_layers
from sparrow.quantize.checkpoint import load_checkpoint
from sparrow.quantize.configs import DgmsConfig, KMeansConfig
from sparrow.quantize.data import load_data
from sparrow.quantize.distill import DistillConfig
from sparrow.quantize.float_pruning import prune_float_, pruning_path
from sparrow.quantize.recipes import load_network, quantize_network, train_network
from sparrow.quantize.sparsity import SparsityConfig, zero_block_share
from sparrow.quantize.train import TrainConfig, resume_path

torch.set_num_threads(1)

SPARSITY = SparsityConfig(sparsity=0.5, criterion="magnitude", schedule="one-shot")
CONFIG = DgmsConfig(bits=4, sparsity=SPARSITY, correction="layerwise")
PRUNING = TrainConfig(epochs=2, batch_size=64, learning_rate=0.03, threads=1)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.pt"
    train_network("digits", data, TrainConfig(epochs=5, batch_size=64, learning_rate=0.1, threads=1), path)
    return path


def test_half_of_the_blocks_go_and_the_accuracy_stays(data, start, tmp_path):
    report = quantize_network("digits", data, start, CONFIG, None, tmp_path / "net.pt", pruning=PRUNING)
    assert len(report.pruning_history) == 2 and report.history == ()
    assert report.test_accuracy > report.start_accuracy - 3
    model, _ = load_network(tmp_path / "net.pt")
    masked = {name: layer for name, (layer, sharing) in quantized_layers(model).items() if sharing.mask is not None}
    assert list(masked) == ["conv2", "conv3", "conv4"]
    blocks = sum(zero_block_share(layer.weight) * layer.weight.numel() for layer in masked.values())
    assert blocks / sum(layer.weight.numel() for layer in masked.values()) == pytest.approx(0.5, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_what_was_pruned_in_float_stays_zero_while_the_rest_is_tuned(data, start, tmp_path):
    """Magnitudes would choose other blocks by then: nothing is chosen again."""
    config = dataclasses.replace(CONFIG, sparsity=dataclasses.replace(SPARSITY, schedule="cubic"))
    tune = dataclasses.replace(PRUNING, epochs=1)
    pruned, tuned = (tmp_path / name for name in ("pruned.pt", "tuned.pt"))
    quantize_network("digits", data, start, config, None, pruned, pruning=PRUNING)
    report = quantize_network("digits", data, start, config, tune, tuned, pruning=PRUNING)
    assert len(report.history) == 1
    first, second = (quantized_layers(load_network(path)[0]) for path in (pruned, tuned))
    for name in ("conv2", "conv3", "conv4"):
        assert torch.equal(first[name][1].mask, second[name][1].mask)
        assert not torch.equal(original_weight(first[name][0]), original_weight(second[name][0]))
        assert not bool(second[name][0].weight[~second[name][1].mask].any())


def test_an_interrupted_pruning_gives_the_same_network(data, start, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    teacher = {"teacher": ("digits", start), "distill_config": DistillConfig(features=(("conv3", "conv3"),))}
    quantize_network("digits", data, start, CONFIG, None, whole, pruning=PRUNING, **teacher)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sparrow.quantize.recipes.calibrate", interrupt)  # after the pruning
        quantize_network("digits", data, start, CONFIG, None, broken, pruning=PRUNING, **teacher)
    assert resume_path(pruning_path(broken)).exists() and not broken.exists()
    report = quantize_network("digits", data, start, CONFIG, None, broken, pruning=PRUNING, **teacher)
    assert report.resumed and len(report.pruning_history) == 2 and not resume_path(pruning_path(broken)).exists()
    first, second = (load_checkpoint(path)["state_dict"] for path in (whole, broken))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_failed_pruning_leaves_a_plain_network(data, tmp_path):
    model = build_model("digits")

    def failing(_):
        raise SparrowError("no loss")

    with pytest.raises(SparrowError, match="no loss"):
        prune_float_(model, data, SPARSITY, PRUNING, calibration=[torch.zeros(2, 1, 8, 8)], loss_function=failing,
                     checkpoint_path=tmp_path / "net.pt", job={})  # fmt: skip
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DgmsConfig(bits=4), "pruning in float without a sparsity"),
        (DgmsConfig(sparsity=SparsityConfig(sparsity=0.5, criterion="zero-component")), "criterion zero-component"),
        (KMeansConfig(bits=4, sparsity=dataclasses.replace(SPARSITY, layers_dense=("*",))), "no layer to prune"),
        (DgmsConfig(sparsity=SPARSITY, layers_8bit=("conv9",)), "layers_8bit: 'conv9' matches no"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_in_float(config, message, data, start, tmp_path):
    with pytest.raises(SparrowError, match=message) as caught:
        quantize_network("digits", data, start, config, None, tmp_path / "net.pt", pruning=PRUNING)
    assert caught.value.next_step and not list(tmp_path.iterdir())

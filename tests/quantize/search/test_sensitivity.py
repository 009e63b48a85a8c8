"""What settings do to a network, measured on a small one."""

import pytest
import torch

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.api import config_from_json, layer_report, make_pruner, quantize_
from sparrow.quantize.search import Setting, choice_config, measure_sensitivity, searchable_layers, uniform_choice
from sparrow.quantize.search.sensitivity import settled_weight
from sparrow.quantize.sparsity import zero_block_share

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("digits").eval()


@pytest.fixture(scope="module")
def images():
    return [torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))]


def test_first_last_and_grouped_layers_are_left_alone(model):
    assert searchable_layers(model) == ["conv2", "conv3", "conv4"]
    grouped = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 4, 1)
    )
    with pytest.raises(SparrowError, match="no layer to search"):
        searchable_layers(grouped)


def test_fewer_bits_and_more_zeros_move_the_outputs_further(model, images):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = [Setting(8, 0.0), Setting(4, 0.0), Setting(2, 0.0), Setting(4, 0.5), Setting(4, 0.75)]
    losses = measure_sensitivity(model, images, ["conv2", "conv3"], settings)
    for found in losses.values():
        assert 0 <= found[Setting(8, 0.0)] < found[Setting(4, 0.0)] < found[Setting(2, 0.0)]
        assert found[Setting(4, 0.0)] < found[Setting(4, 0.5)] < found[Setting(4, 0.75)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_interrupted_measurement_goes_on(model, images):
    seen: list[str] = []
    known = {"conv2": {Setting(4, 0.0): 0.5}}
    found = measure_sensitivity(model, images, ["conv2", "conv3"], [Setting(4, 0.0)], known=known,
                                on_layer=lambda name, losses: seen.append(name))  # fmt: skip
    assert seen == ["conv3"] and found["conv2"] == known["conv2"]


def test_no_images(model):
    with pytest.raises(SparrowError, match="no images"):
        measure_sensitivity(model, [], ["conv2"], [Setting(4, 0.0)])


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.75])
def test_a_settled_weight_has_its_bits_and_zeros(bits, sparsity):
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    settled = settled_weight(weight, Setting(bits, sparsity))
    assert settled.unique().numel() <= (2**bits if bits < 8 else 16 * 255)
    assert zero_block_share(settled) == pytest.approx(sparsity, abs=0.05 if bits > 2 else 0.3)


def test_a_choice_becomes_a_configuration_that_quantizes_so(model):
    choice = {"conv2": Setting(2, 0.0), "conv3": Setting(8, 0.5), "conv4": Setting(4, 0.25)}
    blocks = {name: model.get_submodule(name).weight.numel() // 16 for name in choice}
    config = choice_config(choice, blocks)
    assert config_from_json(config.to_json()) == config
    torch.manual_seed(0)
    quantized = quantize_(build_model("digits"), config)
    pruner = make_pruner(quantized, config, 0)
    assert pruner is not None
    pruner.step(0)
    found = {layer.name: layer for layer in layer_report(quantized)}
    assert {name: layer.bits for name, layer in found.items()} == {
        "conv1": 8, "conv2": 2, "conv3": 8, "conv4": 4, "linear": 8,
    }  # fmt: skip
    for name, setting in choice.items():
        if found[name].bits > 2:
            assert found[name].zero_blocks == pytest.approx(setting.sparsity, abs=0.05)
    assert choice_config(uniform_choice(choice, Setting(4, 0.0)), blocks).sparsity is None

"""Configurations, and quantizing a network: which layer gets what, what is refused, what comes back from a file."""

import io
import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.api import (
    QUANTIZERS,
    calibrate,
    config_from_json,
    config_from_yaml,
    is_quantized_checkpoint,
    layer_report,
    load_quantized,
    original_weight,
    quantization_state,
    quantize_,
    quantized_layers,
    weight_parameter_groups,
)
from sparrow.quantize.configs import DgmsConfig, Int8Config, KMeansConfig, LsqConfig
from sparrow.quantize.dgms import MixtureSharing
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.sparsity import SparsityConfig
from sparrow.quantize.uniform import UniformSharing

torch.set_num_threads(1)


class SmallNet(nn.Module):
    """Convolution, depthwise convolution, two convolutions, two linear layers; images of 3x8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.hidden, self.classifier = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.depthwise(torch.relu(self.stem(x)))))
        return self.classifier(torch.relu(self.hidden(x.mean((2, 3)))))


def small_net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def formats(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.format for layer in layer_report(model)}


# ---- configurations


@pytest.mark.parametrize(
    "config",
    [
        DgmsConfig(),
        DgmsConfig(bits=2, sigma_init="empirical", temperature=0.05, layers_8bit=(), activation_bits=None),
        DgmsConfig(bits=3, layers_8bit=("stem", "body.*"), layers_float=("hidden",), calibration="mse"),
        Int8Config(calibration="min-max", percentile=100.0),
        KMeansConfig(bits=2, channel_scale=True, correction="layerwise", sparsity=SparsityConfig(sparsity=0.5)),
        LsqConfig(bits=8, equalize=True, correction="bias"),
    ],
)
def test_config_json_and_yaml_round_trip(config):
    assert config_from_json(config.to_json()) == config == config_from_yaml(config.to_yaml())
    content = json.loads(config.to_json())
    assert content["method"] == config.method and content["version"] == 1


def test_keys_that_are_missing_take_their_defaults():
    assert config_from_json('{"method": "dgms", "version": 1, "bits": 2}') == DgmsConfig(bits=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"version": 1}', "unknown quantization method 'None'"),
        ('{"method": "dgm", "version": 1}', "did you mean 'dgms'"),
        ('{"method": "dgms", "version": 2}', "version 2"),
        ('{"method": "dgms"}', "version None"),
        ('{"method": "dgms", "version": 1, "bit": 4}', "did you mean 'bits'"),
        ('{"method": "int8", "version": 1, "bits": 4}', "no key 'bits'"),
        ('{"method": "dgms", "version": 1, "bits": "4"}', "bits is '4'"),
        ('{"method": "dgms", "version": 1, "layers_8bit": "conv1"}', "layers_8bit is 'conv1'"),
    ],
)
def test_bad_config_text(text, message):
    with pytest.raises(SparrowError, match=message):
        config_from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [", "no YAML"), ("- a", "no JSON object"), ("method: kmean\nversion: 1", "did you mean 'kmeans'"),
        ("method: lsq\nversion: 1\nbits: 5", "bits is 5"),
    ],
)  # fmt: skip
def test_bad_yaml(text, message):
    with pytest.raises(SparrowError, match=message):
        config_from_yaml(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", 8), ("channel_scale", 1), ("equalize", "yes"), ("correction", "all"),
        ("bits", 1), ("bits", 5), ("bits", 4.0), ("bits", True), ("bits", None), ("sigma_init", "wide"),
        ("temperature", 0), ("temperature", 2.0), ("temperature", float("nan")), ("activation_bits", 4),
        ("calibration", "max"), ("percentile", 50), ("percentile", 100.1), ("percentile", "99"), ("layers_float", "a"),
        ("layers_float", (1,)), ("layers_8bit", ["a"]),
    ],
)  # fmt: skip
def test_config_out_of_range(name, value):
    with pytest.raises(SparrowError, match=f"{name} is") as caught:
        DgmsConfig(**{name: value})
    assert caught.value.expected


# ---- which layer gets what


def test_first_last_and_depthwise_layers_are_8_bit_by_default():
    assert formats(quantize_(small_net(), DgmsConfig())) == {
        "stem": "int8", "depthwise": "int8", "body.0": "codebook", "body.3": "codebook", "hidden": "codebook",
        "classifier": "int8",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "int8", "float_layers"),
    [
        (DgmsConfig(layers_8bit=()), set(), set()),
        (DgmsConfig(layers_8bit=("body.*",)), {"body.0", "body.3"}, set()),
        (DgmsConfig(layers_8bit=("hidden",), layers_float=("stem", "class*")), {"hidden"}, {"stem", "classifier"}),
        # With the ends float, those that are then first and last are kept at 8 bits.
        (DgmsConfig(layers_float=("stem", "classifier")), {"depthwise", "hidden"}, {"stem", "classifier"}),
        (Int8Config(layers_float=("body.?",)), {"stem", "depthwise", "hidden", "classifier"}, {"body.0", "body.3"}),
    ],
)
def test_patterns_choose_layers(config, int8, float_layers):
    found = formats(quantize_(small_net(), config))
    assert {name for name, kind in found.items() if kind == "int8"} == int8
    assert {name for name, kind in found.items() if kind == "float"} == float_layers


def test_modules_keep_their_names_and_the_mode_is_kept():
    model = small_net().eval()
    names = [name for name, _ in model.named_modules()]
    graph = quantize_(model, DgmsConfig())
    assert set(names) <= {name for name, _ in graph.named_modules()}
    assert not any(module.training for module in graph.modules())
    assert graph.get_submodule("body.0") is model.body[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DgmsConfig(layers_8bit=("steem",)), "layers_8bit: 'steem' matches no .*\n.*did you mean 'stem'"),
        (DgmsConfig(layers_float=("body.1",)), "layers_float: 'body.1' matches no"),  # a batch norm
        (Int8Config(layers_float=("*",)), "no layer to quantize"),
    ],
)
def test_a_refused_network_is_unchanged(config, message):
    model, before = small_net(), small_net().state_dict()
    with pytest.raises(SparrowError, match=message):
        quantize_(model, config)
    assert model.state_dict().keys() == before.keys()
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    quantize_(model, DgmsConfig())


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("config", [DgmsConfig(), Int8Config()])
def test_weights_that_are_not_finite_are_refused(config, bad):
    model = small_net()
    with torch.no_grad():
        model.hidden.weight[3, 2] = bad
    with pytest.raises(SparrowError, match="weight of hidden has 1 of 128 values"):
        quantize_(model, config)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    quantize_(model, type(config)(layers_float=("hidden",)))


def test_quantizing_twice_is_refused():
    with pytest.raises(SparrowError, match="quantized already"):
        quantize_(quantize_(small_net(), DgmsConfig()), DgmsConfig())


def test_a_configuration_of_no_quantizer_is_refused():
    class Other(DgmsConfig):
        pass

    with pytest.raises(SparrowError, match="no quantizer for a Other"):
        quantize_(small_net(), Other())


# ---- what the quantized network is


def test_float_activations_have_no_grid():
    graph = quantize_(small_net(), DgmsConfig(activation_bits=None)).eval()
    calibrate(graph, [images()], DgmsConfig(activation_bits=None))
    assert not any("activation_grids" in name for name, _ in graph.named_modules())


def test_parameter_groups_hold_every_parameter_once():
    graph = quantize_(small_net(), DgmsConfig())
    weights, mixtures = weight_parameter_groups(graph, 0.2)
    assert {id(p) for g in (weights, mixtures) for p in g["params"]} == {id(p) for p in graph.parameters()}
    assert len(weights["params"]) + len(mixtures["params"]) == len(list(graph.parameters()))
    assert len(mixtures["params"]) == 4 * 3  # share, mean, deviation and temperature of three layers
    assert weights["lr"] == 0.2 and mixtures["lr"] == pytest.approx(0.02) and mixtures["weight_decay"] == 0
    assert weight_parameter_groups(graph, 0.2, mixture_lr=0.5)[1]["lr"] == 0.5
    assert len(weight_parameter_groups(quantize_(small_net(), Int8Config()), 0.2)) == 1


def test_training_changes_weights_and_mixtures():
    config = DgmsConfig(bits=2, temperature=0.5)  # at 0.01 few of such small layers' weights are between two means
    graph = quantize_(small_net(), config).train()
    calibrate(graph, [images()], config)
    before = {name: parameter.detach().clone() for name, parameter in graph.named_parameters()}
    optimizer = torch.optim.SGD(weight_parameter_groups(graph, 0.05))
    nn.functional.cross_entropy(graph(images()), torch.arange(32) % 4).backward()
    optimizer.step()
    same = [name for name, parameter in graph.named_parameters() if torch.equal(parameter, before[name])]
    # A bias before batch norm has no effect.
    assert set(same) <= {"body.0.bias"}


def test_layer_report_says_what_is_exported():
    graph = quantize_(small_net(), DgmsConfig(bits=2, layers_float=("hidden",))).eval()
    report = {layer.name: layer for layer in layer_report(graph)}
    for name, (module, sharing) in quantized_layers(graph).items():
        layer, weight = report[name], module.weight.detach()
        assert layer.shape == tuple(weight.shape) and layer.distinct_values == len(np.unique(weight.numpy()))
        assert layer.zeros == pytest.approx(float((weight == 0).float().mean()))
        assert layer.grid_loss == sharing.grid_loss(original_weight(module)) > 0
        assert (layer.format, layer.bits) == (("codebook", 2) if isinstance(sharing, MixtureSharing) else ("int8", 8))
    assert isinstance(quantized_layers(graph)["stem"][1], UniformSharing)
    assert report["body.0"].distinct_values <= 4 and report["body.0"].zeros > 0.1
    assert (report["hidden"].format, report["hidden"].bits, report["hidden"].grid_loss) == ("float", 32, 0.0)


# ---- checkpoints


@pytest.mark.parametrize(
    "config",
    [
        DgmsConfig(bits=3), DgmsConfig(activation_bits=None), Int8Config(),
        DgmsConfig(channel_scale=True, equalize=True, correction="layerwise"),
        KMeansConfig(correction="layerwise", channel_scale=True), LsqConfig(bits=8), LsqConfig(channel_scale=True),
    ],
)  # fmt: skip
def test_a_loaded_network_gives_the_same_bits(config):
    graph = quantize_(small_net(), config).eval()
    calibrate(graph, [images()], config)
    with torch.no_grad():  # as after training: not what quantizing again would give
        for parameter in graph.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    file = io.BytesIO()
    torch.save({**quantization_state(graph, config), "epoch": 3}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    assert is_quantized_checkpoint(checkpoint)
    torch.manual_seed(9)
    loaded, found = load_quantized(SmallNet, checkpoint)
    assert found == config and not loaded.training
    assert torch.equal(loaded(images()), graph(images()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "sparrow-float-1"}, "not of a quantized network"),
        ({"quantization": "{}"}, "unknown quantization method"),
        ({"quantization": None}, "no JSON"),
        ({"quantization": DgmsConfig(bits=2).to_json()}, "another architecture"),
        ({"state_dict": {}}, "no state dict"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message):
    config = DgmsConfig()
    checkpoint = quantization_state(quantize_(small_net(), config), config) | change
    with pytest.raises(SparrowError, match=message):
        load_quantized(SmallNet, checkpoint)


def test_a_checkpoint_of_another_network_is_refused():
    config = DgmsConfig()
    checkpoint = quantization_state(quantize_(small_net(), config), config)
    with pytest.raises(SparrowError, match="another architecture"):
        load_quantized(lambda: build_model("digits"), checkpoint)


# ---- every quantizer, as the compiler gets it


@pytest.mark.parametrize(
    "config",
    [
        *(quantizer.config() for quantizer in QUANTIZERS.values()),
        LsqConfig(bits=8, channel_scale=True),
        LsqConfig(bits=2, channel_scale=True),
        KMeansConfig(channel_scale=True, correction="layerwise"),
        DgmsConfig(channel_scale=True, correction="bias"),
    ],
    ids=lambda config: f"{config.method}{getattr(config, 'bits', 8)}-{config.correction}",
)
def test_exported_network_agrees_in_onnx_runtime(config, tmp_path):
    graph = quantize_(small_net(), config).eval()
    calibrate(graph, [images()], config)
    export_onnx(graph, (3, 8, 8), tmp_path / "net.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = images(100)
    found, expected = session.run(None, {"input": x.numpy()})[0], graph(x).detach().numpy()
    # A value on the border of two steps may fall to either side: the scale of one step bounds the difference.
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.99

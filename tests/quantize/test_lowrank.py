"""Factors multiply to the weight at full rank, to the best approximation below, and make a network that compiles."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.api import calibrate, layer_report, quantize_
from sparrow.quantize.checkpoint import save_checkpoint
from sparrow.quantize.configs import DgmsConfig, Int8Config
from sparrow.quantize.data import load_data
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.lowrank import FactorizedLayer, LowRankConfig, factorize_, restructure_
from sparrow.quantize.recipes import export_checkpoint, load_network, quantize_network, report_document
from sparrow.quantize.train import evaluate

torch.set_num_threads(1)


class Network(nn.Module):
    """A strided and dilated convolution, a 1x1 convolution, and linear layers between two that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.window = nn.Conv2d(16, 24, 3, stride=2, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24)
        self.pointwise = nn.Conv2d(24, 32, 1, stride=2, bias=False)
        self.hidden, self.classifier = nn.Linear(32, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.window(torch.relu(self.stem(x))))))
        return self.classifier(torch.relu(self.hidden(torch.relu(self.pointwise(x)).mean((2, 3)))))


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def low_rank(model: Network) -> Network:
    """Make weights that have rank 4 in every mode exactly."""
    with torch.no_grad():
        a, b, c = torch.randn(24, 4), torch.randn(16, 4), torch.randn(9, 4)
        model.window.weight.copy_(torch.einsum("or,ir,kr->oik", a, b, c).reshape(24, 16, 3, 3) / 20)
        model.pointwise.weight.copy_((torch.randn(32, 4) @ torch.randn(4, 24) / 10)[:, :, None, None])
        model.hidden.weight.copy_(torch.randn(20, 4) @ torch.randn(4, 32) / 10)
    return model


X = torch.randn(3, 3, 17, 17, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("convolution", ["tucker2", "cp"])
def test_weights_of_low_rank_lose_nothing(convolution: str) -> None:
    model = low_rank(network())
    expected = model(X)
    done = factorize_(model, LowRankConfig(convolution=convolution, energy=0.9999999))
    assert [(layer.name, layer.method) for layer in done] == [
        ("window", convolution), ("pointwise", "svd"), ("hidden", "svd"),
    ]  # fmt: skip
    ranks = {layer.name: layer.ranks for layer in done}
    assert ranks == {"window": (4, 4) if convolution == "tucker2" else (4,), "pointwise": (4,), "hidden": (4,)}
    assert all(layer.error < 2e-3 and layer.weights_after < layer.weights_before / 2 for layer in done)
    torch.testing.assert_close(model(X), expected, rtol=2e-2, atol=2e-3)
    assert sum(p.numel() for p in model.window.parameters()) == done[0].weights_after + 24  # and the bias


def test_svd_is_the_best_approximation_of_its_rank() -> None:
    model = network()
    singular = torch.linalg.svdvals(model.hidden.weight.detach())
    (done,) = factorize_(model, LowRankConfig(layers=("hidden",), budget=0.6, multiple=1))
    (rank,) = done.ranks
    assert rank == int(0.6 * 640 / 52)
    expected = float((singular[rank:].square().sum() / singular.square().sum()).sqrt())
    assert done.error == pytest.approx(expected, rel=1e-4)


def test_the_energy_that_was_asked_for_is_kept() -> None:
    (done,) = factorize_(network(), LowRankConfig(layers=("hidden",), energy=0.7, multiple=1))
    assert 1 - done.error**2 >= 0.7
    (one_less,) = factorize_(network(), LowRankConfig(layers=("hidden",), budget=(done.ranks[0] - 0.5) * 52 / 640,
                                                      multiple=1))  # fmt: skip
    assert 1 - one_less.error**2 < 0.7


@pytest.mark.parametrize("convolution", ["tucker2", "cp"])
@pytest.mark.parametrize("budget", [0.3, 0.6])
def test_the_budget_holds(convolution: str, budget: float) -> None:
    config = LowRankConfig(layers=("window",), convolution=convolution, budget=budget, multiple=1)
    (done,) = factorize_(network(), config)
    assert done.weights_after <= budget * done.weights_before
    assert done.weights_after > 0.7 * budget * done.weights_before
    assert 0 < done.error < 1


def test_separable_convolutions_are_the_best_common_filters() -> None:
    model = network()
    weight = model.window.weight.detach().clone()
    (done,) = factorize_(model, LowRankConfig(convolution="separable"))
    assert done.name == "window" and done.ranks == () and done.weights_after == 16 * 9 + 16 * 24
    depthwise, pointwise = model.window
    assert depthwise.groups == 16 and depthwise.stride == (2, 2) and depthwise.dilation == (2, 2)
    # Rank one, channel by channel: what is left are the other singular values.
    squares = torch.linalg.svdvals(weight.flatten(2).transpose(0, 1)).square()
    assert done.error == pytest.approx(float((squares[:, 1:].sum() / squares.sum()).sqrt()), rel=1e-4)
    product = torch.einsum("oi,ik->oik", pointwise.weight.flatten(1), depthwise.weight.flatten(1))
    assert float((product - weight.flatten(2)).norm() / weight.norm()) == pytest.approx(done.error, rel=1e-4)


def test_a_layer_that_would_not_shrink_stays() -> None:
    model = network()
    assert factorize_(model, LowRankConfig(energy=1.0)) == []
    assert isinstance(model.window, nn.Conv2d)


def test_the_structure_can_be_built_again_for_saved_weights() -> None:
    model = network()
    done = factorize_(model, LowRankConfig(budget=0.5))
    saved = [FactorizedLayer(**dataclasses.asdict(layer)) for layer in done]
    again = network()
    restructure_(again, saved)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(X), model(X)) and not again.window.training
    with pytest.raises(SparrowError, match="no layer window"):
        restructure_(build_model("digits"), saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "neither energy nor budget"),
        ({"energy": 0.9, "budget": 0.5}, "both energy and budget"),
        ({"energy": 0.0}, "energy is 0.0"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"energy": 0.9, "convolution": "tucker"}, "convolution is 'tucker'\n.*did you mean 'tucker2'"),
        ({"energy": 0.9, "multiple": 0}, "multiple is 0"),
        ({"energy": 0.9, "layers": "window"}, "layers is 'window'"),
        ({"energi": 0.9}, "no key 'energi'\n.*did you mean 'energy'"),
        ({"energy": 0.9, "version": 2}, "version 2"),
    ],
)
def test_bad_configurations(values: dict[str, object], message: str) -> None:
    with pytest.raises(SparrowError, match=message):
        LowRankConfig.from_dict(values)


def test_configuration_round_trip_and_a_pattern_that_matches_nothing() -> None:
    config = LowRankConfig(layers=("window", "hid*"), convolution="cp", budget=0.25)
    assert LowRankConfig.from_dict(json.loads(config.to_json())) == config
    with pytest.raises(SparrowError, match=r"'windw' matches no .*\n.*did you mean 'window'"):
        factorize_(network(), LowRankConfig(layers=("windw",), energy=0.9))


def test_a_factorized_checkpoint_is_rebuilt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint({"state_dict": build_model("digits").state_dict()}, tmp_path / "float.pt")
    data = load_data("digits")
    report = quantize_network("digits", data, tmp_path / "float.pt", Int8Config(), None, tmp_path / "net.pt",
                              calibration_images=32, low_rank=LowRankConfig(budget=0.5))  # fmt: skip
    assert report.factorized and report.size is not None and report.size.weights < 23_000
    model, content = load_network(tmp_path / "net.pt")
    names = {layer.name for layer in layer_report(model)}
    assert {f"{layer.name}.0" for layer in report.factorized} <= names and "factorized" in content
    assert evaluate(model, data) == report.test_accuracy
    export_checkpoint(tmp_path / "net.pt", tmp_path / "net.onnx")
    assert report_document(report)["size"]["packed_bytes"] == report.size.total


@pytest.mark.tvm
@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed")
@pytest.mark.parametrize("convolution", ["tucker2", "cp", "separable"])
def test_factorized_networks_quantize_export_and_compile(convolution: str, tmp_path: Path) -> None:
    from sparrow.benchmarks.harness import verify
    from sparrow.deploy.compiler import compile_model

    torch.manual_seed(0)
    model = build_model("digits").eval()
    budget = None if convolution == "separable" else 0.5
    assert factorize_(model, LowRankConfig(convolution=convolution, budget=budget))
    config = DgmsConfig()
    model = quantize_(model, config).eval()
    x = torch.randn(16, 1, 8, 8)
    calibrate(model, [x], config)
    assert any(layer.name.endswith(".0") for layer in layer_report(model))
    export_onnx(model, (1, 8, 8), tmp_path / "net.onnx", {})
    expected = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": x[:1].numpy()})[0]
    np.testing.assert_allclose(expected, model(x[:1]).detach().numpy(), atol=0.1)
    bundle = compile_model(tmp_path / "net.onnx", tmp_path / "bundle", target="cortex-a53")
    assert any(layer["name"].endswith(".1") for layer in bundle.manifest["layers"])
    assert all(layer["weight_format"] != "f32" for layer in bundle.manifest["layers"])
    result = verify(bundle.path, x.numpy(), None, cpu="cortex-a53", threads=1, jobs=1)
    assert result.ok

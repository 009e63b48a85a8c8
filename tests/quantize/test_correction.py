"""Correction brings a layer's outputs nearer to the float ones, entry by entry and in the mean, and keeps its form."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize import correction
from sparrow.quantize.api import calibrate, make_pruner, original_weight, quantize_, quantized_layers
from sparrow.quantize.configs import DgmsConfig, Int8Config, KMeansConfig, LsqConfig, QuantizeConfig
from sparrow.quantize.correction import _Search
from sparrow.quantize.sharing import CodebookSharing
from sparrow.quantize.sparsity import SparsityConfig

torch.set_num_threads(1)

FULL = Path("/dev/full")


class Network(nn.Module):
    """Batch norm behind one convolution, biases in the others, inputs that are correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.body = nn.Conv2d(8, 16, 3, dilation=2, padding="same", padding_mode="circular")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.8, 0.2, 0.3]])
    return torch.einsum("ij,njhw->nihw", mixing, torch.randn(count, 3, 10, 10, generator=generator))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Network().train()
    with torch.no_grad():
        for _ in range(20):
            model(images(32, 1))
    return model.eval()


def output_error(config: QuantizeConfig) -> float:
    model = quantize_(network(), config).eval()
    calibrate(model, list(images(64, 1).split(16)), config)
    x = images(64, 2)
    with torch.no_grad():
        expected = network()(x)
        return float((model(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "config",
    [
        KMeansConfig(bits=2, layers_8bit=("depthwise",)),
        DgmsConfig(bits=2, layers_8bit=("depthwise",), channel_scale=True),
        LsqConfig(bits=3, layers_8bit=(), channel_scale=True),
    ],
    ids=lambda config: config.method,
)
def test_outputs_of_unseen_images_come_nearer(config: QuantizeConfig) -> None:
    plain = output_error(config)
    means = output_error(dataclasses.replace(config, correction="bias"))
    layerwise = output_error(dataclasses.replace(config, correction="layerwise"))
    assert means < plain and layerwise < 0.6 * plain


def test_means_of_outputs_are_those_of_the_float_network() -> None:
    config = KMeansConfig(bits=2, layers_8bit=("depthwise",), correction="bias", activation_bits=None)
    model, float_network = quantize_(network(), config).eval(), network()
    x = images(64, 1)
    calibrate(model, list(x.split(24)), config)
    seen: dict[str, list[Tensor]] = {}
    for found in (float_network, model):
        for name in ("norm", "depthwise", "body", "head"):
            hook = lambda module, inputs, output, name=name: seen.setdefault(name, []).append(output)  # noqa: E731
            found.get_submodule(name).register_forward_hook(hook)
        found(x)
    for name, (expected, output) in seen.items():
        axes = [axis for axis in range(expected.dim()) if axis != 1]
        torch.testing.assert_close(output.mean(axes), expected.mean(axes), rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("config", [KMeansConfig(), DgmsConfig(), LsqConfig(channel_scale=True)])
def test_corrected_weights_keep_their_form_and_the_network_its_mode(config: QuantizeConfig) -> None:
    config = dataclasses.replace(config, correction="layerwise")
    model = quantize_(network(), config).train()
    calibrate(model, [images(32, 1)], config)
    assert model.training
    for layer, sharing in quantized_layers(model.eval()).values():
        weight = original_weight(layer)
        assert torch.equal(layer.weight, sharing.hard_weight(weight)) and weight.isfinite().all()
        if isinstance(sharing, CodebookSharing):
            assert sharing.codebook()[0] == 0 and len(layer.weight.unique()) <= 16 * (sharing.entry_scale().numel())


def test_pruned_weights_stay_zero() -> None:
    sparsity = SparsityConfig(sparsity=0.5, criterion="magnitude", schedule="one-shot", layers_dense=("stem", "head"))
    config = KMeansConfig(layers_8bit=("depthwise",), correction="layerwise", sparsity=sparsity)
    model = quantize_(network(), config).eval()
    pruner = make_pruner(model, config, 0)
    assert pruner is not None
    pruner.step(0)
    calibrate(model, [images(32, 1)], config)
    layer, sharing = quantized_layers(model)["body"]
    assert sharing.mask is not None and 0.4 < float((~sharing.mask).float().mean()) < 0.6
    assert not layer.weight[~sharing.mask].any() and layer.weight[sharing.mask].any()


def test_a_layer_that_runs_twice_and_one_without_inputs_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.dead = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x))))))
            return self.dead(x * 0)

    torch.manual_seed(0)
    config = KMeansConfig(layers_8bit=(), correction="layerwise")
    model = quantize_(Twice().eval(), config)
    before = {name: layer.weight.clone() for name, (layer, _) in quantized_layers(model).items()}
    calibrate(model, [torch.randn(32, 6)], config)
    layers = quantized_layers(model).items()
    changed = {name for name, (layer, _) in layers if not torch.equal(layer.weight, before[name])}
    assert changed == {"first"}


def test_int8_networks_have_their_means_corrected_too() -> None:
    assert output_error(Int8Config(correction="layerwise")) < 0.05


def test_activations_on_disk_give_the_same(monkeypatch, tmp_path) -> None:
    config = KMeansConfig(bits=2, layers_8bit=("depthwise",), correction="layerwise")

    def corrected() -> dict[str, Tensor]:
        model = quantize_(network(), config).eval()
        calibrate(model, list(images(32, 1).split(16)), config)
        return model.state_dict()

    expected = corrected()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    kept: list[Tensor] = []
    on_disk = correction._on_disk
    monkeypatch.setattr(correction, "_on_disk", lambda values: kept.append(values) or on_disk(values))
    monkeypatch.setattr(correction, "_IN_MEMORY", 1 << 12)
    found = corrected()
    assert kept and all(torch.equal(expected[name], found[name]) for name in expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
def test_a_full_disk_is_explained(monkeypatch) -> None:
    monkeypatch.setattr(correction.tempfile, "NamedTemporaryFile", lambda prefix: FULL.open("wb", buffering=0))
    with pytest.raises(SparrowError, match="4,000,000 bytes of activations cannot be kept") as caught:
        correction._on_disk(torch.zeros(1_000_000))
    assert "TMPDIR" in caught.value.next_step


# ---- the search by itself


def search(channel_scale: bool) -> tuple[_Search, Tensor]:
    torch.manual_seed(0)
    target, inputs = torch.randn(12, 20), torch.randn(200, 20) @ torch.randn(20, 20)
    scale = target.abs().amax(1) / 7 if channel_scale else torch.tensor(0.4)
    codebook = torch.tensor([0.0, -6, -4, -2, -1, 1, 3, 6])
    return _Search(target, inputs.T @ inputs / 200, None, codebook, scale), torch.zeros(12, 20, dtype=torch.long)


@pytest.mark.parametrize("channel_scale", [False, True])
def test_each_step_of_the_search_lowers_the_error(channel_scale: bool) -> None:
    found, index = search(channel_scale)
    errors = [found.error(index)]
    for _ in range(3):
        index = found.choose(index)
        errors.append(found.error(index))
        found.fit(index, fits_codebook=True)
        errors.append(found.error(index))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.95 * errors[1]


def test_the_fitted_table_is_the_least_squares_solution() -> None:
    found, index = search(channel_scale=True)
    index = found.choose(index)
    found.codebook = found._fitted_codebook(index)
    least = found.error(index)
    assert found.codebook[0] == 0
    for entry in range(1, 8):
        for change in (-1e-2, 1e-2):
            found.codebook[entry] += change
            assert found.error(index) >= least
            found.codebook[entry] -= change


def test_choosing_column_by_column_beats_rounding() -> None:
    found, _ = search(channel_scale=False)
    distances = (found.target[..., None] / found.scale - found.codebook).abs()
    assert found.error(found._compensate()) < 0.7 * found.error(distances.argmin(-1))

"""Blocks are what they say, the right ones are pruned at the right time, and masks survive everything."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.api import (
    config_from_json,
    layer_report,
    load_quantized,
    make_pruner,
    original_weight,
    quantization_state,
    quantize_,
    quantized_layers,
)
from sparrow.quantize.configs import DgmsConfig, Int8Config
from sparrow.quantize.data import load_data
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.sparsity import PATTERNS, SCHEDULES, SparsityConfig, zero_block_share
from sparrow.quantize.sparsity.patterns import expand_blocks, pool_blocks
from sparrow.quantize.train import TrainConfig, resume_path, train

HALF = SparsityConfig(sparsity=0.5, criterion="zero-component", schedule="one-shot")


def pruned_digits(config: DgmsConfig | Int8Config) -> nn.Module:
    torch.manual_seed(0)
    model = quantize_(build_model("digits").eval(), config)
    pruner = make_pruner(model, config, 0)
    assert pruner is not None
    pruner.step(0)
    return model


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (8, 4), (5, 7, 3, 3), (3, 2), (9, 17, 1, 1)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pooling_is_the_mean_of_each_block(shape: tuple[int, ...], pattern: str) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pooled = pool_blocks(values, pattern)
    height, width = PATTERNS[pattern].block
    assert pooled.shape == (-(-shape[0] // height), -(-shape[1] // width), *shape[2:])
    for out in range(pooled.shape[0]):
        for into in range(pooled.shape[1]):
            part = values[out * height : (out + 1) * height, into * width : (into + 1) * width]
            torch.testing.assert_close(pooled[out, into], part.mean(dim=(0, 1)))
    assert expand_blocks(pooled, values.shape, pattern).shape == values.shape


def test_share_of_zero_blocks() -> None:
    weight = torch.ones(8, 8, 1, 1)
    weight[:4, :4] = 0
    weight[4, 4] = 0
    assert zero_block_share(weight) == 0.25
    assert zero_block_share(weight, "unstructured") == 17 / 64
    assert zero_block_share(weight, "4x8") == 0


@pytest.mark.parametrize("config", [
    DgmsConfig(sparsity=HALF),
    DgmsConfig(sparsity=dataclasses.replace(HALF, pattern="2:4", distribution="global"), bits=2),
    Int8Config(sparsity=dataclasses.replace(HALF, criterion="magnitude", pattern="4x8", distribution="per-layer")),
])  # fmt: skip
def test_sparsity_asked_for_is_reached(config: DgmsConfig | Int8Config) -> None:
    model = pruned_digits(config).eval()
    assert config.sparsity is not None
    pattern = config.sparsity.pattern
    masks = {name: sharing.mask for name, (_, sharing) in quantized_layers(model).items() if sharing.mask is not None}
    assert set(masks) == {"conv2", "conv3", "conv4"}
    shares = [1 - float(pool_blocks(mask.float(), pattern).mean()) for mask in masks.values()]
    blocks = [pool_blocks(mask.float(), pattern).numel() for mask in masks.values()]
    assert np.average(shares, weights=blocks) == pytest.approx(0.5, abs=1 / min(blocks))
    for report in layer_report(model):
        if report.name in masks:
            assert not dict(model.named_modules())[report.name].weight[~masks[report.name]].any()


def test_least_worthy_blocks_go_first() -> None:
    model = pruned_digits(
        DgmsConfig(sparsity=dataclasses.replace(HALF, criterion="magnitude", distribution="per-layer"))
    )
    for layer, sharing in quantized_layers(model).values():
        if sharing.mask is not None:
            worth = pool_blocks(original_weight(layer).abs(), "4x4")
            kept = pool_blocks(sharing.mask.float(), "4x4") > 0
            assert worth[kept].min() >= worth[~kept].max()


def test_zero_component_decides_by_its_pooled_responsibility() -> None:
    model = pruned_digits(DgmsConfig(sparsity=dataclasses.replace(HALF, distribution="per-layer")))
    layer, sharing = next(pair for pair in quantized_layers(model).values() if pair[1].mask is not None)
    responsibility = torch.log_softmax(
        torch.stack([
            torch.log(share / sharing.share.sum()) - torch.log(deviation)
            - (original_weight(layer).double() - mean) ** 2 / (2 * deviation.double() ** 2)
            for share, deviation, mean in zip(sharing.share, sharing.deviation, sharing.codebook(), strict=True)
        ]), dim=0,
    )[0]  # fmt: skip
    torch.testing.assert_close(sharing.log_zero_responsibility(original_weight(layer)).double(), responsibility,
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    pooled, kept = pool_blocks(responsibility, "4x4"), pool_blocks(sharing.mask.float(), "4x4") > 0
    assert pooled[kept].max() <= pooled[~kept].min() + 1e-3


def test_cubic_schedule_rises_to_one_and_flattens() -> None:
    values = [SCHEDULES["cubic"].sparsity(step / 10, 0.8) for step in range(11)]
    assert values[0] == 0 and values[-1] == 0.8 and values == sorted(values)
    assert values[1] - values[0] > 10 * (values[-1] - values[-2])


def test_masks_follow_the_schedule_and_then_stay() -> None:
    config = DgmsConfig(sparsity=SparsityConfig(sparsity=0.6, start=0.2, stop=0.8, interval=7))
    torch.manual_seed(0)
    model = quantize_(build_model("digits"), config)
    pruner = make_pruner(model, config, 100)
    assert pruner is not None
    masks = [sharing.mask for _, sharing in quantized_layers(model).values() if sharing.mask is not None]
    total, seen = sum(mask.numel() for mask in masks), []
    for done in range(101):
        pruner.step(done)
        seen.append(1 - sum(int(mask.sum()) for mask in masks) / total)
    assert seen[19] == 0 and seen[20] == 0 and seen[27] > 0.1
    assert seen[80:] == [seen[80]] * 21 and seen[80] == pytest.approx(0.6, abs=0.02)
    assert seen == sorted(seen)


def test_pruned_weights_move_nothing() -> None:
    """A mixture gathers the gradients of its weights; those of weights that are not used would carry it away."""
    config = DgmsConfig(sparsity=HALF, activation_bits=None)
    model = pruned_digits(config).train()
    image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(image).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    for layer, sharing in quantized_layers(model).values():
        if sharing.mask is not None:
            assert not original_weight(layer).grad[~sharing.mask].any()
            assert not layer.weight[~sharing.mask].any()
            with torch.no_grad():
                original_weight(layer)[~sharing.mask] += 0.1
    after = gradients()
    for name, gradient in before.items():  # up to the order of sums
        torch.testing.assert_close(after[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("config", [DgmsConfig(sparsity=HALF),
                                    Int8Config(sparsity=dataclasses.replace(HALF, criterion="magnitude"))])  # fmt: skip
def test_masks_survive_checkpoint_and_export(config: DgmsConfig | Int8Config, tmp_path: Path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    config = dataclasses.replace(config, activation_bits=None)
    model = pruned_digits(config).eval()
    loaded, read = load_quantized(lambda: build_model("digits"), quantization_state(model, config))
    assert read == config
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)
    export_onnx(loaded, (1, 8, 8), tmp_path / "net.onnx", {})
    exported = onnx.load(tmp_path / "net.onnx")
    (output,) = ReferenceEvaluator(exported).run(None, {exported.graph.input[0].name: image.numpy()})
    np.testing.assert_allclose(output, model(image).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert sum(report.zero_blocks > 0.2 for report in layer_report(loaded)) >= 2


@pytest.mark.parametrize("config", [
    DgmsConfig(sparsity=SparsityConfig(sparsity=0.5, criterion="zero-component", interval=3, penalty=0.1)),
    Int8Config(sparsity=SparsityConfig(sparsity=0.5, interval=3, criterion="movement")),
    Int8Config(sparsity=SparsityConfig(sparsity=0.5, interval=3, criterion="magnitude", schedule="rigl")),
    Int8Config(sparsity=SparsityConfig(sparsity=0.5, interval=5, criterion="magnitude", schedule="iterative")),
])  # fmt: skip
def test_resumed_training_prunes_as_if_it_had_not_been_interrupted(
    config: DgmsConfig | Int8Config, tmp_path: Path
) -> None:
    data = load_data("digits", None)
    steps = len(data.train_labels) // 128

    def run(name: str, stop_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = quantize_(build_model("digits"), config)
        pruner = make_pruner(model, config, 2 * steps)
        assert pruner is not None
        pruner.step(0)

        def on_step(done: int) -> None:
            pruner.step(done)
            if done == stop_at:
                raise KeyboardInterrupt

        loss = pruner.penalized(lambda images, logits, labels: nn.functional.cross_entropy(logits, labels))
        path = tmp_path / name
        train(model, data, TrainConfig(epochs=2, learning_rate=0.01, threads=1), checkpoint_path=path,
              on_step=on_step, loss_function=loss, progress=False)  # fmt: skip
        return model.state_dict()

    whole = run("whole", None)
    # An interruption goes back to the last saved state, here the end of the first epoch: it lies between two choices.
    with pytest.raises(KeyboardInterrupt):
        run("broken", steps + 2)
    assert resume_path(tmp_path / "broken").exists()
    resumed = run("broken", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    masks = [tensor for name, tensor in whole.items() if name.endswith("mask")]
    assert np.average([float(mask.float().mean()) for mask in masks], weights=[mask.numel() for mask in masks]) < 0.6


def test_penalty_draws_blocks_into_the_zero_component_and_leaves_the_mixture_alone() -> None:
    config = DgmsConfig(sparsity=dataclasses.replace(HALF, penalty=1.0), activation_bits=None)
    torch.manual_seed(0)
    model = quantize_(build_model("digits"), config)
    pruner = make_pruner(model, config, 100)
    assert pruner is not None
    penalty = pruner.penalty()
    penalty.backward()
    first = float(penalty.detach())
    assert first > 0
    layers = [pair for pair in quantized_layers(model).values() if pair[1].mask is not None]
    assert all(parameter.grad is None for _, sharing in layers for parameter in sharing.parameters())
    with torch.no_grad():
        for layer, _ in layers:
            weight = original_weight(layer)
            # Only the half of the blocks that is likest to zero is drawn there.
            drawn = pool_blocks((weight.grad != 0).float(), "4x4") > 0
            assert float(drawn.float().mean()) == pytest.approx(0.5, abs=0.05)
            weight -= 1e-3 * weight.grad / weight.grad.abs().max()
    assert float(pruner.penalty().detach()) < first


def test_configuration_goes_to_json_and_back() -> None:
    config = DgmsConfig(bits=3, sparsity=SparsityConfig(sparsity=0.25, pattern="4x8", layers_dense=("layer1.*",)))
    assert config_from_json(config.to_json()) == config
    listed = DgmsConfig(
        sparsity=SparsityConfig(sparsity=0.25, distribution="per-layer", shares=(("layer1.*", 0.5), ("layer2.*", 0.75)))
    )
    assert config_from_json(listed.to_json()) == listed
    document = json.loads(config.to_json())
    document["sparsity"]["spasity"] = 1
    with pytest.raises(SparrowError, match="no key 'spasity'"):
        config_from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.2}, "sparsity is 1.2"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": True}, "sparsity is True"),
        ({"pattern": "4x5"}, "pattern is '4x5'"),
        ({"pattern": ["4x4"]}, "pattern is"),
        ({"criterion": "magnitud"}, "criterion is 'magnitud'"),
        ({"start": 0.6, "stop": 0.4}, "stop is 0.4"),
        ({"interval": 0}, "interval is 0"),
        ({"layers_dense": "layer1"}, "layers_dense is 'layer1'"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"distribution": "all"}, "distribution is 'all'"),
        ({"regrown": 1.5}, "regrown is 1.5"),
        ({"penalty": -1}, "penalty is -1"),
        ({"penalty": 1, "criterion": "magnitude"}, "a penalty with the criterion magnitude"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "a sparsity of 0.6 with the pattern 2:4"),
        ({"pattern": "2:4", "schedule": "rigl"}, "the schedule rigl with the pattern 2:4"),
        ({"pattern": "2:4", "distribution": "erk"}, "the distribution erk with the pattern 2:4"),
        ({"pattern": "2:4", "distribution": "per-layer", "shares": (("a", 0.6),)}, "shares of .* with the pattern 2:4"),
        ({"criterion": "taylor", "schedule": "rigl"}, "the schedule rigl with the criterion taylor"),
        ({"shares": (("layer1.*", 0.5),)}, "shares of layers with the distribution"),
        ({"shares": (("layer1.*", 1.5),), "distribution": "per-layer"}, "shares is"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SparrowError, match=message):
        SparsityConfig(**{"sparsity": 0.5} | change)


def test_missing_sparsity_is_refused() -> None:
    with pytest.raises(SparrowError, match="does not say how much"):
        SparsityConfig.from_dict({"pattern": "4x4"})


def test_keys_of_earlier_releases_are_read() -> None:
    read = SparsityConfig.from_dict({"sparsity": 0.5, "block": "1x1", "scope": "per-layer"})
    assert read == SparsityConfig(sparsity=0.5, pattern="unstructured", distribution="per-layer")


def test_zero_component_needs_a_mixture() -> None:
    with pytest.raises(SparrowError, match="has no mixture"):
        quantize_(build_model("digits"), Int8Config(sparsity=HALF))


def test_pattern_that_matches_nothing_is_refused() -> None:
    config = DgmsConfig(sparsity=dataclasses.replace(HALF, layers_dense=("none.*",)))
    with pytest.raises(SparrowError, match=r"layers_dense: 'none\.\*' matches no convolution"):
        quantize_(build_model("digits"), config)


def test_share_of_a_layer_that_is_not_pruned_is_refused() -> None:
    config = DgmsConfig(sparsity=dataclasses.replace(HALF, distribution="per-layer", shares=(("blok1.*", 0.5),)))
    with pytest.raises(SparrowError, match=r"shares: 'blok1\.\*' matches no") as raised:
        quantize_(build_model("digits"), config)
    assert raised.value.expected


def test_network_without_a_layer_to_prune_is_refused() -> None:
    with pytest.raises(SparrowError, match="no layer to prune"):
        quantize_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), DgmsConfig(sparsity=HALF))

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
from sparrow.quantize.sparsity import BLOCKS, CRITERIA, SparsityConfig, zero_block_share
from sparrow.quantize.sparsity.blocks import expand_blocks, pool_blocks
from sparrow.quantize.sparsity.schedules import SCHEDULES, cubic
from sparrow.quantize.train import TrainConfig, resume_path, train

HALF = SparsityConfig(sparsity=0.5, schedule="one-shot")


def pruned_digits(config: DgmsConfig | Int8Config) -> nn.Module:
    torch.manual_seed(0)
    model = quantize_(build_model("digits").eval(), config)
    pruner = make_pruner(model, config, 0)
    assert pruner is not None
    pruner.step(0)
    return model


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (8, 4), (5, 7, 3, 3), (3, 2), (9, 17, 1, 1)])
@pytest.mark.parametrize("block", BLOCKS)
def test_pooling_is_the_mean_of_each_block(shape: tuple[int, ...], block: str) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pooled = pool_blocks(values, block)
    height, width = BLOCKS[block]
    assert pooled.shape == (-(-shape[0] // height), -(-shape[1] // width), *shape[2:])
    for out in range(pooled.shape[0]):
        for into in range(pooled.shape[1]):
            part = values[out * height : (out + 1) * height, into * width : (into + 1) * width]
            torch.testing.assert_close(pooled[out, into], part.mean(dim=(0, 1)))
    assert expand_blocks(pooled, values.shape, block).shape == values.shape


def test_share_of_zero_blocks() -> None:
    weight = torch.ones(8, 8, 1, 1)
    weight[:4, :4] = 0
    weight[4, 4] = 0
    assert zero_block_share(weight) == 0.25
    assert zero_block_share(weight, "1x1") == 17 / 64
    assert zero_block_share(weight, "4x8") == 0


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["global", "per-layer"])
@pytest.mark.parametrize("block", BLOCKS)
def test_sparsity_asked_for_is_reached(criterion: str, scope: str, block: str) -> None:
    config = DgmsConfig(sparsity=dataclasses.replace(HALF, criterion=criterion, scope=scope, block=block))
    model = pruned_digits(config).eval()
    masks = {name: sharing.mask for name, (_, sharing) in quantized_layers(model).items() if sharing.mask is not None}
    assert set(quantized_layers(model)) - set(masks) == {"stem.0", "classifier"} or len(masks) >= 2
    shares = [1 - float(pool_blocks(mask.float(), block).mean()) for mask in masks.values()]
    blocks = [pool_blocks(mask.float(), block).numel() for mask in masks.values()]
    assert np.average(shares, weights=blocks) == pytest.approx(0.5, abs=1 / min(blocks))
    if scope == "per-layer":
        assert shares == pytest.approx([0.5] * len(shares), abs=1 / min(blocks))
    for report in layer_report(model):
        if report.name in masks:
            weight = dict(model.named_modules())[report.name].weight
            assert not weight[~masks[report.name]].any()


def test_least_worthy_blocks_go_first() -> None:
    model = pruned_digits(DgmsConfig(sparsity=dataclasses.replace(HALF, criterion="magnitude", scope="per-layer")))
    for layer, sharing in quantized_layers(model).values():
        if sharing.mask is not None:
            worth = pool_blocks(original_weight(layer).abs(), "4x4")
            kept = pool_blocks(sharing.mask.float(), "4x4") > 0
            assert worth[kept].min() >= worth[~kept].max()


def test_zero_component_decides_by_its_pooled_responsibility() -> None:
    model = pruned_digits(DgmsConfig(sparsity=dataclasses.replace(HALF, scope="per-layer")))
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
    values = [cubic(step / 10) for step in range(11)]
    assert values[0] == 0 and values[-1] == 1 and values == sorted(values)
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


def test_gradient_reaches_pruned_weights_so_that_they_can_come_back() -> None:
    model = pruned_digits(DgmsConfig(sparsity=HALF, activation_bits=None)).train()
    model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    for layer, sharing in quantized_layers(model).values():
        if sharing.mask is not None:
            assert original_weight(layer).grad[~sharing.mask].abs().sum() > 0
            assert not layer.weight[~sharing.mask].any()


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


def test_resumed_training_prunes_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    config = DgmsConfig(sparsity=SparsityConfig(sparsity=0.5, interval=3))
    data = load_data("digits", None)

    def run(name: str, stop_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = quantize_(build_model("digits"), config)
        pruner = make_pruner(model, config, 2 * (len(data.train_labels) // 128))
        assert pruner is not None

        def on_step(done: int) -> None:
            pruner.step(done)
            if done == stop_at:
                raise KeyboardInterrupt

        path = tmp_path / name
        train(model, data, TrainConfig(epochs=2, learning_rate=0.01, threads=1), checkpoint_path=path,
              on_step=on_step, progress=False)  # fmt: skip
        return model.state_dict()

    whole = run("whole", None)
    steps = len(data.train_labels) // 128
    with pytest.raises(KeyboardInterrupt):
        run("broken", steps + 3)
    assert resume_path(tmp_path / "broken").exists()
    resumed = run("broken", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(name.endswith("mask") and not tensor.all() for name, tensor in whole.items())


def test_configuration_goes_to_json_and_back() -> None:
    config = DgmsConfig(bits=3, sparsity=SparsityConfig(sparsity=0.25, block="4x8", layers_dense=("layer1.*",)))
    assert config_from_json(config.to_json()) == config
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
        ({"block": "4x5"}, "block is '4x5'"),
        ({"criterion": "magnitud"}, "criterion is 'magnitud'"),
        ({"start": 0.6, "stop": 0.4}, "stop is 0.4"),
        ({"interval": 0}, "interval is 0"),
        ({"layers_dense": "layer1"}, "layers_dense is 'layer1'"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"scope": "all"}, "scope is 'all'"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SparrowError, match=message):
        SparsityConfig(**{"sparsity": 0.5} | change)
    assert set(SCHEDULES) == {"one-shot", "cubic"}


def test_missing_sparsity_is_refused() -> None:
    with pytest.raises(SparrowError, match="does not say how much"):
        SparsityConfig.from_dict({"block": "4x4"})


def test_zero_component_needs_a_mixture() -> None:
    with pytest.raises(SparrowError, match="has no mixture"):
        quantize_(build_model("digits"), Int8Config(sparsity=HALF))


def test_pattern_that_matches_nothing_is_refused() -> None:
    config = DgmsConfig(sparsity=dataclasses.replace(HALF, layers_dense=("none.*",)))
    with pytest.raises(SparrowError, match="matches no convolution"):
        quantize_(build_model("digits"), config)


def test_network_without_a_layer_to_prune_is_refused() -> None:
    with pytest.raises(SparrowError, match="no layer to prune"):
        quantize_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), DgmsConfig(sparsity=HALF))

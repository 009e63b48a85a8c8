"""Bytes add up to what the compiler packs, and the ratio of papers is computed as papers do."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from sparrow.kernels.formats import ConvWeights, WeightFormat, pack_weights
from sparrow.kernels.size_report import LayerSize
from sparrow.quantize.api import make_pruner, quantize_, quantized_layers
from sparrow.quantize.configs import DgmsConfig, KMeansConfig, QuantizeConfig
from sparrow.quantize.size_report import size_report
from sparrow.quantize.sparsity import SparsityConfig


def sizes(config: QuantizeConfig) -> tuple[nn.Module, dict[str, LayerSize]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 32, 3, bias=False),
                        nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32, 10), nn.Linear(10, 3))  # fmt: skip
    model = quantize_(net.eval(), config)
    if (pruner := make_pruner(model, config, 0)) is not None:
        pruner.step(0)
    return model, {layer.name: layer for layer in size_report(model).layers}


def test_parts_are_counted_by_hand() -> None:
    _, found = sizes(KMeansConfig(layers_float=("6",), layers_8bit=("0", "1")))
    table = found["2"]
    assert (table.bits, table.weights, table.values, table.codebook) == (4, 2304, 1152, 16)
    assert (table.constants, table.block_map) == (32 * 12, 0)
    int8 = found["0"]
    assert (int8.bits, int8.values, int8.codebook, int8.constants) == (8, 216, 0, 96)
    assert (found["1"].bits, found["1"].values) == (8, 72)
    in_float = found["6"]
    assert (in_float.bits, in_float.total) == (32, 30 * 4 + 3 * 4)


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4)])
def test_totals_are_what_is_packed(bits: int, stored: int) -> None:
    model, found = sizes(DgmsConfig(bits=bits))
    layer, sharing = quantized_layers(model)["3"]
    index = sharing.indices(layer.parametrizations["weight"].original).numpy()
    zeros, ones = np.zeros(32, np.float32), np.ones(32, np.float32)
    kind = WeightFormat.CB2T if stored == 2 else WeightFormat.CB4T
    packed = ConvWeights(kind, index, sharing.int8_codebook()[0].numpy(), zeros.astype(np.int32), ones, zeros)
    assert found["3"].total == len(pack_weights(packed)) and found["3"].bits == stored
    assert found["3"].nominal_bits == bits and found["3"].zeros == int((layer.weight == 0).sum())


def test_blocks_of_zeros_are_left_out_and_their_map_is_counted() -> None:
    sparsity = SparsityConfig(sparsity=0.75, criterion="magnitude", schedule="one-shot", layers_dense=("0", "6"))
    _, dense = sizes(KMeansConfig())
    model, sparse = sizes(KMeansConfig(sparsity=sparsity))
    layer = sparse["3"]
    kept = float(quantized_layers(model)["3"][1].mask.float().mean())
    assert layer.values == pytest.approx(kept * dense["3"].values, rel=0.05)
    assert layer.block_map == 4 * (8 + 1) + layer.values * 2 // 16
    assert layer.total < dense["3"].total


def test_both_ratios() -> None:
    model, found = sizes(DgmsConfig(bits=4, layers_8bit=()))
    report = size_report(model)
    weights, zeros = (sum(getattr(layer, key) for layer in found.values()) for key in ("weights", "zeros"))
    assert report.paper_ratio == pytest.approx(32 / (4 * (1 - zeros / weights)))
    assert report.true_ratio == pytest.approx(4 * weights / report.total) and report.true_ratio < report.paper_ratio
    content = json.loads(json.dumps(report.to_dict()))
    assert content["packed_bytes"] == sum(layer["total"] for layer in content["layers"])
    text = "\n".join(report.lines())
    assert f"{report.total:,} bytes" in text and f"{report.paper_ratio:.1f}" in text

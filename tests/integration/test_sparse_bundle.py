"""Blocks that training pruned are zero in the ONNX file, left out of the bundle, and its results are right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparrow.models.resnet_cifar import CifarResNet
from sparrow.quantize.api import calibrate, layer_report, make_pruner, quantize_
from sparrow.quantize.configs import Int8Config
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.sparsity import SparsityConfig
from sparrow.quantize.sparsity.channels import remove_channels

pytestmark = [pytest.mark.tvm, pytest.mark.slow]


def test_zeros_reach_the_manifest_and_the_kernels_skip_them(tmp_path: Path) -> None:
    from sparrow.deploy.compiler import compile_model

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randn(8, 3, 32, 32)
    network = remove_channels(CifarResNet(8).eval(), images[:1], 0.5)
    sparsity = SparsityConfig(sparsity=0.75, criterion="magnitude", distribution="per-layer", schedule="one-shot")
    config = Int8Config(sparsity=sparsity)
    model = quantize_(network, config).eval()
    pruner = make_pruner(model, config, 0)
    assert pruner is not None
    pruner.step(0)
    calibrate(model, [images], config)
    pruned = [layer for layer in layer_report(model) if layer.zero_blocks > 0.5]
    assert len(pruned) == 6
    export_onnx(model, (3, 32, 32), tmp_path / "net.onnx", {})
    bundle = compile_model(tmp_path / "net.onnx", tmp_path / "net", target="cortex-a76")
    layers = bundle.manifest["layers"]
    sparse = [layer for layer in layers if layer["zero_share"] > 0.5]
    assert np.allclose(
        sorted(layer["zero_share"] for layer in sparse), sorted(layer.zeros for layer in pruned), atol=0.01
    )
    for layer in sparse:
        assert "of its 4x4 blocks are zero" in layer["reason"]
        if "skipped" in layer["reason"]:
            assert layer["packed_bytes"] < 0.7 * layer["parameters"]  # of one byte each
    assert any("skipped" in layer["reason"] for layer in sparse)

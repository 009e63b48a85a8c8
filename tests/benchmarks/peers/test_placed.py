"""Other runtimes with a bundle's threads on the same cores."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparrow.benchmarks.calibration.networks import Network
from sparrow.benchmarks.peers import placed
from sparrow.benchmarks.peers.placed import predict_runtime
from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.runners.qemu import CacheMisses, ExecutedBlock, InstructionCounts, Section
from sparrow.kernels.errors import SparrowError

needs_llvm = pytest.mark.skipif(shutil.which(blocks.MCA) is None, reason=f"{blocks.MCA} is missing")
LOOP = bytes.fromhex("000400f1e1ffff54")  # subs x0, x0, #1; b.ne


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One convolution on 8 x 6 pixels, float."""
    weights = np.random.default_rng(3).standard_normal((4, 3, 3, 3), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 3, 8, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4, 6, 4))],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    path = tmp_path / "convolution.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "cache_dir", lambda: tmp_path / "cache")


@pytest.mark.qemu
@needs_llvm
@pytest.mark.usefixtures("own_cache")
def test_ncnn_is_counted_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Network, int, bool]] = []

    class Runner:
        def __init__(self, on_progress: Callable[[str], None]) -> None: ...

        def count(
            self, network: Network, *, threads: int, half: bool, caches: list[Any], **_: Any
        ) -> InstructionCounts:
            asked.append((network, threads, half))
            executions = (1_000_000 // threads,) * threads
            instructions = tuple(2 * number for number in executions)
            misses = ((CacheMisses(0, 0),) * threads,) * len(caches)
            return InstructionCounts(instructions, (instructions,), (Section(0, instructions, caches=misses),),
                                     (ExecutedBlock(LOOP, (executions,)),))  # fmt: skip

    monkeypatch.setattr(placed, "NcnnRunner", Runner)
    monkeypatch.setattr(placed, "convert", lambda *_, **__: tmp_path / "converted")
    first, again = (predict_runtime("ncnn", model, "rk3588", threads=(1, 2)) for _ in range(2))
    assert first == again
    network, half = asked[0][0], [entry[2] for entry in asked]
    assert (network.width, network.height, network.channels, half) == (6, 8, 3, [False, False])
    assert [threads for _, threads, _ in asked] == [1, 2]
    one, two = first.predictions
    assert two.pipeline_milliseconds == pytest.approx(one.pipeline_milliseconds / 2)
    assert (first.runtime, first.model) == ("ncnn", "convolution.onnx")


@pytest.mark.tvm
@pytest.mark.qemu
@needs_llvm
@pytest.mark.usefixtures("own_cache")
def test_the_code_of_tvm_runs_on_one_thread(model: Path) -> None:
    result = predict_runtime("tvm", model, "raspberry-pi-3", threads=(1, 4))
    (prediction,) = result.predictions
    assert (prediction.threads, prediction.fork_join_milliseconds) == (1, 0.0)
    assert prediction.instructions > 3 * 3 * 3 * 4 * 6 * 4 / 4  # of products of four floats, at least


def test_what_cannot_be_compared_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match="unknown runtime 'ncn'") as error:
        predict_runtime("ncn", model, "rk3588")
    assert "ncnn" in str(error.value)
    network = onnx.load(model)
    network.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s"], ["d"]))
    onnx.save(network, tmp_path / "quantized.onnx")
    with pytest.raises(SparrowError, match="is quantized"):
        predict_runtime("ncnn", tmp_path / "quantized.onnx", "rk3588")
    with pytest.raises(SparrowError, match="no data for the SoC"):
        predict_runtime("ncnn", model, "rk3589")

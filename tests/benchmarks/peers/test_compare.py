"""The table of peers: its rows, the reasons in it, and what a run of a peer gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparrow.benchmarks.peers import compare
from sparrow.benchmarks.peers.compare import IN_ORDER, OUT_OF_ORDER, PeersResult, compare_peers
from sparrow.benchmarks.predict.work import Work
from sparrow.benchmarks.result_files import write_result
from sparrow.benchmarks.runners.arm_userland import Userland, arm_userland
from sparrow.benchmarks.runners.qemu import InstructionCounts, RunResult, find_qemu
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import cache_dir

from .fake_peer import FakePeer

SHAPE = (1, 3, 4, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A linear layer of five outputs."""
    weights = np.random.default_rng(3).standard_normal((48, 5), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])], "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


Fake = Callable[[str], FakePeer]

CONVERT = """
import json
import numpy as np
from pathlib import Path
RUNTIME = "json"
def convert(model, precision, calibration, folder):
    import onnx
    (weights,) = onnx.load(model).graph.initializer
    np.save(folder / "model.npy", onnx.numpy_helper.to_array(weights))
def load(runtime, folder, precision):
    weights = np.load(folder / "model.npy")
    calls = []
    def infer(values):
        calls.append(values)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A function that makes the list of peers one peer, which runs the given lines for an inference."""

    def make(body: str) -> FakePeer:
        path = tmp_path / "fake.py"
        path.write_text(CONVERT + "".join(f"        {line}\n" for line in body.splitlines()) + "    return infer\n")
        peer = FakePeer("fake", runs=("numpy",), converts=(), precisions=("fp32", "fp16"), path=path)
        monkeypatch.setattr(compare, "PEERS", {"fake": peer})
        return peer

    return make


@pytest.fixture
def userland(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Userland:
    """The real userland; what is converted and counted is kept apart from the user's."""
    try:
        arm_userland(["numpy"])
    except SparrowError as error:
        pytest.skip(f"no userland for arm64: {error.got.splitlines()[0]}")
    (tmp_path / "cache").mkdir()
    for name in ("arm-userland", "wheels"):
        (tmp_path / "cache" / name).symlink_to(cache_dir() / name)
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    return arm_userland(["numpy"])


LINEAR = "return values.reshape(1, -1) @ weights"


@pytest.mark.qemu
@pytest.mark.slow
def test_a_peer_is_counted_without_its_warm_up_and_only_once(
    model: Path, fake: Fake, userland: Userland, tmp_path: Path
) -> None:  # fmt: skip
    if not find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")
    # The first call does a thousand times the work of the second, which is the one that counts.
    fake(f"for _ in range(1000 if len(calls) == 1 else 1):\n    values @ values\n{LINEAR}")
    arguments: dict[str, Any] = {"peers": ["fake"], "cpus": ["cortex-a53"]}
    result = compare_peers(model, **arguments)
    assert compare_peers(model, **arguments, on_progress=lambda step: pytest.fail(step)) == result
    row, half = result.rows
    assert half.reason == "cortex-a53 has no arithmetic in half precision"
    assert (row.reason, row.precision) == ("", "fp32")
    assert row.instructions is not None
    assert 1_000 < row.instructions < 1_000_000
    assert row.relative_error is not None
    assert row.relative_error < 1e-6
    assert row.top1_agreement == 1
    assert row.model_bytes == 48 * 5 * 4 + 128
    if row.predicted_cycles is not None:
        assert 0.2 * row.instructions < row.predicted_cycles < 50 * row.instructions
        assert row.peak_memory_bytes is not None
        assert row.baseline_memory_bytes is not None
        assert 0 <= row.peak_memory_bytes < row.baseline_memory_bytes < 1 << 28
    write_result(result, tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["schema"] == "sparrow-peers"
    assert cattrs.structure(document, PeersResult) == result


@pytest.mark.parametrize(("body", "reason"), [
    ("raise ValueError('no such operator')", "fake 1.0 failed on cortex-a53: ValueError: no such operator"),
    ("import os\nos.abort()", "SIGABRT"),
])  # fmt: skip
@pytest.mark.qemu
def test_a_peer_that_fails_gets_a_row_that_says_why(
    model: Path, fake: Fake, userland: Userland, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    monkeypatch.setattr(compare, "_can_predict", lambda: False)
    fake(body)
    (row,) = compare_peers(model, peers=["fake"], cpus=["cortex-a53"], precisions=["fp32"]).rows
    assert reason in row.reason
    assert row.instructions is None


def test_what_the_userland_lacks_is_in_every_row(
    model: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def missing(*arguments: object, **options: object) -> Userland:
        raise SparrowError("pip cannot get the aarch64 wheel")

    fake(LINEAR)
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compare, "arm_userland", missing)
    rows = compare_peers(model, peers=["fake"], cpus=["cortex-a76"]).rows
    assert [row.reason for row in rows] == ["pip cannot get the aarch64 wheel"] * 2


def test_a_quantized_network_is_taken_as_given(model: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    network = onnx.load(model)
    network.graph.initializer.extend([numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
                                      numpy_helper.from_array(np.array(0, np.int8), "zero")])  # fmt: skip
    grid = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"])]  # fmt: skip
    network.graph.node[0].input[0] = "d"
    nodes = [*grid, *network.graph.node]
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    onnx.save(network, model)
    seen = []

    def convert(peer: FakePeer, path: Path, precision: str, *rest: object, **options: object) -> Path:
        seen.append(precision)
        raise SparrowError("not today")

    fake(LINEAR)
    monkeypatch.setattr(compare, "convert", convert)
    (row,) = compare_peers(model, peers=["fake"], cpus=["cortex-a76"]).rows
    assert (row.precision, row.reason, seen) == ("as given", "not today", ["fp32"])


def test_cycles_and_memory_of_a_row() -> None:
    cpu = compare._cpu("cortex-a53")
    work = Work(instructions=100, pipeline_cycles=70, l1_misses=5, l2_misses=2, memory_lines=2)
    models = {cpu.core.pipeline_model, cpu.yardstick.pipeline_model}
    counted = compare._Counted(100, dict.fromkeys(models, work), 5000, 0.25, 0.5)
    row = compare._filled(compare.PeerRow("fake", "1.0", "fp32", "cortex-a53"), counted, 3000, cpu)
    assert row.yardstick_cycles == 70 + 3 * 13 + 2 * 20
    assert row.predicted_cycles == compare.price(work, cpu.core.figures).cycles
    assert row.predicted_for.startswith("cortex-a53, ")
    assert (row.peak_memory_bytes, row.baseline_memory_bytes) == (2000, 3000)
    assert (row.instructions, row.relative_error, row.top1_agreement) == (100, 0.25, 0.5)


def run_result(*threads: int) -> RunResult:
    return RunResult(0, "", "", InstructionCounts(program=threads, regions=(threads,), sections=()))


def test_outputs_are_compared() -> None:
    reference = np.array([[1.0, 2.0], [3.0, 3.5]], np.float32)
    outputs = np.array([[1.0, 2.0], [4.0, 3.5]], np.float32)
    counted = compare._counted("fake 1.0", run_result(7, 0), compare._cpu("cortex-a53"), False, outputs, reference)
    assert counted.relative_error == pytest.approx(1 / 3.5)
    assert (counted.top1_agreement, counted.instructions, counted.work) == (0.5, 7, {})


@pytest.mark.parametrize(("outputs", "threads", "says"), [
    ([[1.0, float("nan")]], (7,), "infinity or NaN"),
    ([[1.0]], (7,), "1 numbers"),
    ([[1.0, 2.0]], (7, 1), "several threads"),
    ([[1.0, 2.0]], (), "0 regions"),
])  # fmt: skip
def test_what_cannot_be_compared_is_a_reason(outputs: list[list[float]], threads: tuple[int, ...], says: str) -> None:
    result = run_result(*threads) if threads else RunResult(0, "", "", None)
    with pytest.raises(SparrowError, match=rf"fake 1\.0 .*{says}"):
        compare._counted("fake 1.0", result, compare._cpu("cortex-a53"), False, np.array(outputs, np.float32),
                         np.ones((1, 2), np.float32))  # fmt: skip


def test_the_yardsticks() -> None:
    work = Work(instructions=10, pipeline_cycles=8, l1_misses=3, l2_misses=1)
    assert IN_ORDER.cycles(work) == 8 + 2 * 13 + 20
    assert OUT_OF_ORDER.cycles(work) == 8
    assert compare._cpu("i8mm").yardstick == OUT_OF_ORDER
    assert compare._cpu("i8mm").level == "armv8.6-a+i8mm"


@pytest.mark.parametrize(("arguments", "says"), [
    ({"peers": ["ncn"]}, "unknown peer 'ncn'"),
    ({"cpus": ["cortex-a99"]}, "no data for the core 'cortex-a99'"),
    ({"inputs": np.zeros((4, 1, 3, 5, 5), np.float32)}, "inputs of shape"),
    ({"inputs": np.zeros((1, *SHAPE), np.float32)}, "inputs of shape"),
])  # fmt: skip
def test_bad_arguments(model: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(SparrowError, match=says) as caught:
        compare_peers(model, **{"peers": [], "cpus": ["cortex-a53"], **arguments})
    assert caught.value.expected


def test_a_network_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(SparrowError, match="cannot be read as ONNX"):
        compare_peers(path, peers=[])


def test_the_number_of_inputs_is_set_to_one_and_other_free_dimensions_are_refused(model: Path, tmp_path: Path) -> None:
    network = onnx.load(model)
    for value in (network.graph.input[0], network.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path = tmp_path / "free.onnx"
    onnx.save(network, path)
    result = compare_peers(path, peers=[])
    assert (result.model, result.rows) == ("free.onnx", ())
    network.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(network, path)
    with pytest.raises(SparrowError, match="height"):
        compare_peers(path, peers=[])

"""The ONNX file: standard operators, weights in their bits, the network's own outputs in stock ONNX Runtime."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.api import calibrate, original_weight, quantize_, quantized_layers
from sparrow.quantize.configs import DgmsConfig, Int8Config, QuantizeConfig
from sparrow.quantize.dgms import MixtureSharing
from sparrow.quantize.export_onnx import export_onnx

torch.set_num_threads(1)

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
METADATA = {"sparrow.model": "digits", "note": "made by a test"}
SHAPES = {"digits": (1, 8, 8), "resnet20": (3, 32, 32)}


def images(shape: tuple[int, ...], count: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def quantized(model: nn.Module, shape: tuple[int, ...], config: QuantizeConfig) -> nn.Module:
    graph = quantize_(model, config).eval()
    calibrate(graph, [images(shape, 16)], config)
    return graph


def registered(name: str, config: QuantizeConfig) -> nn.Module:
    """A network with fresh weights, whose batch norms have seen images."""
    torch.manual_seed(0)
    model = build_model(name).train()
    with torch.no_grad():
        for _ in range(3):
            model(images(SHAPES[name], 16))
    return quantized(model.eval(), SHAPES[name], config)


def run(path: Path, x: Tensor, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options).run(None, {"input": x.numpy()})[0]


@pytest.fixture(scope="module", params=[2, 3, 4])
def digits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, nn.Module, Path]:
    """Bits, the quantized digits network, and its file."""
    model = registered("digits", DgmsConfig(bits=request.param))
    path = tmp_path_factory.mktemp("digits") / "net.onnx"
    export_onnx(model, SHAPES["digits"], path, METADATA)
    return request.param, model, path


def test_indices_are_stored_in_their_bits(digits):
    bits, model, path = digits
    proto = onnx.load(path)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    element, width = (TensorProto.UINT2, 2) if bits == 2 else (TensorProto.UINT4, 4)
    layers = {n: (m, s) for n, (m, s) in quantized_layers(model).items() if isinstance(s, MixtureSharing)}
    assert sorted(layers) == ["conv2", "conv3", "conv4"]
    for name, (module, sharing) in layers.items():
        index, book = stored[f"{name}.weight_packed_index"], stored[f"{name}.weight_codebook"]
        assert index.data_type == element and list(index.dims) == list(module.weight.shape)
        assert len(index.raw_data) == math.ceil(module.weight.numel() * width / 8)
        assert book.data_type == TensorProto.INT8 and list(book.dims) == [2**bits]
        numbers = onnx.numpy_helper.to_array(index).astype(np.uint8)
        np.testing.assert_array_equal(numbers, sharing.indices(original_weight(module)).numpy())
        scale = onnx.numpy_helper.to_array(stored[f"{name}.weight_scale"])
        weight = onnx.numpy_helper.to_array(book)[numbers].astype(np.float32) * scale
        np.testing.assert_array_equal(weight, module.weight.numpy())
    for name in ("conv1", "linear"):
        assert stored[f"{name}.weight_int8"].data_type == TensorProto.INT8
    big = [t.name for t in stored.values() if t.data_type == TensorProto.FLOAT and math.prod(t.dims) > 32]
    assert not big  # no weight is left in float
    assert path.stat().st_size < sum(math.prod(t.dims) for t in stored.values()) * width / 8 + 16_000


def test_a_codebook_is_cast_gather_dequantize(digits):
    _, _, path = digits
    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    conv = next(node for node in graph.node if node.name == "conv3")
    dequantize = made_by[conv.input[1]]
    gather = made_by[dequantize.input[0]]
    cast = made_by[gather.input[1]]
    assert [n.op_type for n in (conv, dequantize, gather, cast)] == ["Conv", "DequantizeLinear", "Gather", "Cast"]
    assert len(dequantize.input) == 2 and cast.input[0] == "conv3.weight_packed_index"
    assert [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")] == [
        "conv1", "conv2", "conv3", "conv4", "linear",
    ]  # fmt: skip


def test_the_file_is_standard_and_holds_nothing_of_the_machine(digits):
    bits, _, path = digits
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 25 if bits == 2 else 21)]
    assert all(node.domain == "" for node in proto.graph.node) and not proto.functions
    assert {item.key: item.value for item in proto.metadata_props} == METADATA
    assert proto.producer_name == "sparrow" and proto.graph.name == "sparrow"
    items = [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]
    assert not any(item.doc_string for item in items)
    assert not any(item.metadata_props for item in items[1:])
    content = path.read_bytes()
    for text in (b".py", b"site-packages", b"pkg.torch", str(Path.home()).encode(), b"Traceback"):
        assert text not in content, text


def test_the_same_network_gives_the_same_file(digits, tmp_path):
    _, model, path = digits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, SHAPES["digits"], tmp_path / "again.onnx", METADATA)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["again.onnx"]


def test_every_optimization_level_and_batch_gives_torchs_outputs(digits):
    _, model, path = digits
    graph = onnx.load(path).graph
    for value, name in ((graph.input[0], "input"), (graph.output[0], "logits")):
        assert value.name == name and value.type.tensor_type.shape.dim[0].dim_param == "batch"
    for count in (1, 2, 37):
        x = images(SHAPES["digits"], count)
        expected = model(x).detach().numpy()
        results = [run(path, x, level) for level in LEVELS]
        assert results[0].shape == (count, 10)
        np.testing.assert_allclose(results[0], expected, atol=2e-5)
        for level, result in zip(LEVELS[1:], results[1:], strict=True):
            # A value between two steps may fall to the other side, which moves a logit by a part of a step.
            assert np.abs(result - expected).max() < 0.02 * np.abs(expected).max(), level
            np.testing.assert_array_equal(result.argmax(1), expected.argmax(1))


def test_shortcuts_without_parameters(tmp_path):
    model = registered("resnet20", DgmsConfig())
    export_onnx(model, SHAPES["resnet20"], tmp_path / "net.onnx", {})
    x = images(SHAPES["resnet20"], 24)
    expected = model(x).detach().numpy()
    for level in LEVELS:
        found = run(tmp_path / "net.onnx", x, level)
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max(), level
        assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.95
    # 4 bits a weight: a float file has 1.09 MB of weights alone.
    assert (tmp_path / "net.onnx").stat().st_size < 240_000


class Tokens(nn.Module):
    """Linear layers on [batch, tokens, features], which ONNX computes by MatMul with a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.parametrize("config", [DgmsConfig(), Int8Config()])
def test_a_weight_that_is_moved_is_no_activation(config, tmp_path):
    torch.manual_seed(0)
    model = quantized(Tokens(), (5, 8), config)
    export_onnx(model, (5, 8), tmp_path / "net.onnx", {})
    x = images((5, 8), 6)
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), model(x).detach().numpy(), atol=2e-3)


class Moving(nn.Module):
    """Grids that pass through max-pool, slices and reshapes; a layer that is called twice; an odd weight count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 7, 3, padding=1, bias=False)
        self.pool, self.linear = nn.MaxPool2d(2), nn.Linear(63, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.body(torch.relu(self.stem(x)))))
        x = torch.relu(self.body(x))[:, :, 1:, 1:]
        return self.linear(x.reshape(x.shape[0], -1))


def test_grids_behind_movements_and_a_layer_called_twice(tmp_path):
    torch.manual_seed(0)
    model = quantized(Moving(), (3, 8, 8), DgmsConfig())
    export_onnx(model, (3, 8, 8), tmp_path / "net.onnx", {})
    graph = onnx.load(tmp_path / "net.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    assert len(stored["body.weight_packed_index"].raw_data) == math.ceil(7 * 7 * 9 / 2)
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Conv"] == 3 and counts["Gather"] == 1
    names = [node.name for node in graph.node]
    assert len(names) == len(set(names)) and "body" in names
    x = images((3, 8, 8), 9)
    for level in LEVELS:
        np.testing.assert_allclose(run(tmp_path / "net.onnx", x, level), model(x).detach().numpy(), atol=0.02)


def test_a_float_network_is_exported_too(tmp_path):
    torch.manual_seed(0)
    model = build_model("digits").eval()
    export_onnx(model, SHAPES["digits"], tmp_path / "net.onnx", {})
    x = images(SHAPES["digits"], 5)
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), model(x).detach().numpy(), atol=1e-4)


def test_a_network_in_training_mode_is_exported_as_it_is_evaluated(tmp_path):
    model = quantized(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), (4,), DgmsConfig())
    export_onnx(model, (4,), tmp_path / "evaluated.onnx", {})
    export_onnx(model.train(), (4,), tmp_path / "training.onnx", {})
    assert model.training and (tmp_path / "evaluated.onnx").read_bytes() == (tmp_path / "training.onnx").read_bytes()


# ---- what is refused


def test_an_uncalibrated_network_is_refused(tmp_path):
    model = quantize_(build_model("digits"), DgmsConfig())
    with pytest.raises(SparrowError, match="activation grids have no range") as caught:
        export_onnx(model, SHAPES["digits"], tmp_path / "net.onnx", {})
    assert "calibrate" in caught.value.next_step and not list(tmp_path.iterdir())


class Solver(nn.Module):
    """An operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x)


@pytest.mark.parametrize(
    ("model", "shape"), [(Solver(), (4, 4)), (nn.Linear(4, 4), (5,))], ids=["operator", "shape"]
)
def test_a_network_that_cannot_be_exported_leaves_the_old_file(model, shape, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"older")
    with pytest.raises(SparrowError, match="cannot be exported to ONNX") as caught:
        export_onnx(model.eval(), shape, tmp_path / "net.onnx", {})
    assert caught.value.expected and "\n" not in caught.value.got
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == b"older"


def test_a_graph_that_the_checker_refuses_is_not_written(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise onnx.checker.ValidationError("a bad node")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(SparrowError, match="does not pass the ONNX checker: a bad node"):
        export_onnx(build_model("digits").eval(), SHAPES["digits"], tmp_path / "net.onnx", {})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(SparrowError, match="nowhere"):
        export_onnx(build_model("digits").eval(), SHAPES["digits"], tmp_path / "nowhere" / "net.onnx", {})

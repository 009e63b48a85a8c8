"""Networks with random weights."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from sparrow.benchmarks.suites.random_networks import NETWORKS, random_network
from sparrow.kernels.errors import SparrowError

# Multiply-accumulates and parameters of convolutions and the classifier, from the papers' architectures.
SIZES = {"resnet18": (1_814_073_344, 11_678_912), "mobilenet_v2": (300_774_272, 3_469_760)}


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Integer weights, or the indices of a codebook less the index of zero, by the name of the tensor."""
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".int8"):
            found[tensor.name] = numpy_helper.to_array(tensor)
        elif tensor.data_type == TensorProto.UINT4:
            found[tensor.name] = numpy_helper.to_array(tensor).astype(int) - 8
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_architecture_is_the_papers(network: str, tmp_path: Path) -> None:
    model = onnx.load(random_network(network, "int8", 0.0, tmp_path / "n.onnx"))
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    products = parameters = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            size = np.array(tensors[producers[node.input[1]].input[0]].dims)
            parameters += size.prod()
            products += size.prod() * (np.prod(shapes[node.output[0]][2:]) if node.op_type == "Conv" else 1)
    assert (int(products), int(parameters)) == SIZES[network]


def test_the_share_of_zero_blocks_is_kept_and_the_ends_stay_dense(tmp_path: Path) -> None:
    model = onnx.load(random_network("mobilenet_v2", "codebook", 0.75, tmp_path / "n.onnx"))
    found = weights(model)
    sparse = [values for name, values in found.items() if name.endswith(".index")]
    assert len(sparse) == 34
    assert all((values == 0).mean() < 0.02 for name, values in found.items() if name.endswith(".int8"))
    blocks = [
        values.reshape(values.shape[0] // 4, 4, values.shape[1] // 4, 4, -1).any(axis=(1, 3)).ravel()
        for values in sparse
    ]
    assert np.concatenate(blocks).mean() == pytest.approx(0.25, abs=0.01)


def test_onnxruntime_runs_it_and_activations_stay_within_their_grids(tmp_path: Path) -> None:
    path = random_network("mobilenet_v2", "codebook", 0.5, tmp_path / "n.onnx")
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {"input": np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)})
    assert logits.shape == (1, 1000)
    assert 0.05 < logits.std() < 20


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    paths = [random_network("mobilenet_v2", "codebook", 0.5, tmp_path / name) for name in ("a.onnx", "b.onnx")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("resnet81", "int8", 0.0), "resnet18"), (("resnet18", "int9", 0.0), "int8"), (("resnet18", "int8", 2.0), "2.0")],
)
def test_bad_arguments_are_named(arguments: tuple[str, str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(SparrowError) as error:
        random_network(*arguments, tmp_path / "n.onnx")
    assert message in f"{error.value} {error.value.expected}"
    assert not list(tmp_path.iterdir())

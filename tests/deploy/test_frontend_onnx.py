from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from sparrow.deploy.frontend.quantized import unpack_sub_byte_initializers
from sparrow.deploy.frontend.shapes import pin_input_shapes
from sparrow.deploy.frontend_onnx import import_relax, load_onnx, normalize
from sparrow.kernels.errors import SparrowError

from .networks import NetworkBuilder, residual_network


def test_reflecting_pad_is_left_alone():
    net = NetworkBuilder()
    pads = net.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    model = net.model(net.operator("Pad", ["input", pads], "y", mode="reflect"), (1, 2, 3, 4), (1, 2, 5, 6))
    assert [node.op_type for node in normalize(model).graph.node] == ["Pad"]


def test_four_bit_initializers_are_unpacked_to_bytes():
    net = NetworkBuilder()
    net.codebook_weight("w", (5, 3))
    model = net.model(net.operator("MatMul", ["input", "w"], "y"), (1, 5), (1, 3))
    before = numpy_helper.to_array(model.graph.initializer[0]).astype(np.uint8)
    unpack_sub_byte_initializers(model)
    assert model.graph.initializer[0].data_type == TensorProto.UINT8
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), before)


def test_dynamic_batch_becomes_one_and_outputs_follow(save_model):
    network = load_onnx(save_model(residual_network()))
    assert network.inputs[0].shape == (1, 3, 16, 16)
    assert network.outputs[0].shape == (1, 10)


def test_every_unresolved_dimension_is_listed_with_the_option_that_sets_it(save_model):
    net = NetworkBuilder()
    path = save_model(net.model(net.operator("Relu", ["input"], "y"), (1, 3, "height", "width"), (1, 3, None, None)))
    with pytest.raises(SparrowError, match=r"input\[2\] \(height\), input\[3\] \(width\)") as caught:
        load_onnx(path)
    assert "--input-shape input=1,3,224,224" in caught.value.next_step
    assert load_onnx(path, {"input": (1, 3, 8, 9)}).outputs[0].shape == (1, 3, 8, 9)


@pytest.mark.parametrize("shapes", [{"other": (1, 3, 8, 8)}, {"input": (1, 3, 8)}, {"input": (1, 4, 8, 8)}])
def test_input_shapes_that_do_not_fit_are_refused(shapes):
    net = NetworkBuilder()
    model = net.model(net.operator("Relu", ["input"], "y"), (1, 3, "h", "w"), (1, 3, None, None))
    with pytest.raises(SparrowError):
        pin_input_shapes(model, shapes)


def test_not_onnx_truncated_missing_and_empty_files_are_refused(tmp_path: Path, save_model):
    whole = save_model(residual_network()).read_bytes()
    for name, content in {"text": b"hello, this is no model", "half": whole[: len(whole) // 2], "empty": b""}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(SparrowError, match=name):
            load_onnx(path)
    with pytest.raises(SparrowError, match="is not a file"):
        load_onnx(tmp_path / "missing.onnx")


def test_nan_weights_are_named(save_model):
    net = NetworkBuilder()
    net.constant("bad", np.array([1.0, np.nan, 2.0], np.float32))
    path = save_model(net.model(net.operator("Add", ["input", "bad"], "y"), (1, 3), (1, 3)))
    with pytest.raises(SparrowError, match="NaN or infinite values in bad"):
        load_onnx(path)


@pytest.mark.tvm
def test_all_operators_that_cannot_be_lowered_are_listed_at_once(save_model):
    net = NetworkBuilder()
    first = net.operator("Det", ["input"], "first")
    model = net.model(net.operator("Bernoulli", [first], "second"), (2, 3, 3), (2,))
    with pytest.raises(SparrowError, match="2 nodes cannot be lowered") as caught:
        import_relax(load_onnx(save_model(model)))
    assert "Det (node_first), Bernoulli (node_second): unknown to the compiler" in str(caught.value)


def test_shapes_that_are_computed_from_shapes_become_numbers(save_model):
    net = NetworkBuilder()
    shape = net.operator("Shape", ["input"], "shape")
    batch = net.operator("Gather", [shape, net.constant("zero", np.array([0]))], "batch_size")
    target = net.operator("Concat", [batch, net.constant("rest", np.array([-1]))], "target", axis=0)
    model = net.model(net.operator("Reshape", ["input", target], "y"), ("batch", 3, 4, 4), (None, None))
    network = load_onnx(save_model(model))
    assert [node.op_type for node in network.model.graph.node] == ["Reshape"]
    assert network.outputs[0].shape == (1, 48)


def test_folding_leaves_codebooks_and_grids_alone(save_model):
    network = load_onnx(save_model(residual_network()))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in network.model.graph.initializer}
    assert all(np.unique(weights[f"block{index}"]).size <= 16 for index in range(1, 5))
    operators = [node.op_type for node in network.model.graph.node]
    assert operators.count("QuantizeLinear") == 7
    assert operators.count("DequantizeLinear") == 9  # seven grids, two int8 weights

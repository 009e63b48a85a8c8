"""What a network can have wrong: a clear error, or the right result."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparrow.deploy.frontend_onnx import load_onnx
from sparrow.kernels.errors import SparrowError

from .models import Model, check, normal_form, random, run


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path / "network.onnx")
    return path / "network.onnx"


def conv() -> Model:
    model = Model()
    model.add("Conv", [model.input("x", random(1, 3, 5, 5)), model.constant(random(2, 3, 3, 3))])
    return model


def test_missing_and_short_files_of_weights_are_named(tmp_path):
    onnx.save(conv().build(), tmp_path / "network.onnx", save_as_external_data=True, location="weights.bin",
              size_threshold=0)  # fmt: skip
    network = load_onnx(tmp_path / "network.onnx")
    assert network.reference is not None  # the bundle gets one file
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(SparrowError, match=r"weights\.bin has 5 bytes of \d+"):
        load_onnx(tmp_path / "network.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(SparrowError, match=r"weights\.bin is missing"):
        load_onnx(tmp_path / "network.onnx")


@pytest.mark.parametrize("version", [3, 99])
def test_operator_sets_that_are_not_known_are_refused(tmp_path, version):
    model = conv().build()
    model.opset_import[0].version = version
    with pytest.raises(SparrowError, match=f"uses version {version} of ONNX's operator set") as caught:
        load_onnx(save(model, tmp_path))
    assert "opset_version" in caught.value.next_step


def test_every_obstacle_is_listed_with_its_reason_and_the_way_out(tmp_path):
    model = Model(13)
    x = model.input("x", np.abs(random(1, 6, 4)))
    scores = model.input("scores", np.abs(random(1, 1, 6)))
    model.add("NonMaxSuppression", [x, scores, model.constant(np.array([3]))])
    model.add("NonZero", [x])
    proto = model.build("nonmaxsuppression0_0", "nonzero1_0")
    proto.graph.node.append(helper.make_node("Mystery", ["x"], ["m"], name="odd", domain="somebody"))
    proto.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [1, 6, 4]))
    proto.opset_import.append(helper.make_opsetid("somebody", 1))
    with pytest.raises(SparrowError, match="3 nodes cannot be lowered") as caught:
        load_onnx(save(proto, tmp_path))
    text = str(caught.value)
    assert "NonMaxSuppression (node0), NonZero (node1): the shape of its result depends on the data" in text
    assert "Mystery (odd): of the domain somebody, not ONNX's" in text
    assert "--outputs" in text


def test_a_network_can_be_cut_before_an_obstacle(tmp_path):
    model = Model(13)
    boxes = model.add("Relu", [model.input("x", random(1, 6, 4))])
    model.add("NonZero", [boxes])
    path = save(model.build(), tmp_path)
    network = load_onnx(path, outputs=[boxes])
    assert [info.name for info in network.outputs] == [boxes]
    assert network.outputs[0].shape == (1, 6, 4)
    assert network.reference is not None
    np.testing.assert_array_equal(run(network.reference, model.feeds)[0], model.feeds["x"].clip(0))
    with pytest.raises(SparrowError, match="no tensor is called 'relu'") as caught:
        load_onnx(path, outputs=["relu"])
    assert boxes in caught.value.expected


def branch(name: str, op_type: str, source: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, 4])
    return helper.make_graph([helper.make_node(op_type, [source], [f"{name}_out"])], name, [], [output])


def test_a_branch_whose_condition_follows_from_shapes_is_taken():
    model = Model(13)
    x = model.input("x", random(1, 4), ["batch", 4])
    size = model.add("Gather", [model.add("Shape", [x]), model.constant(np.int64(1))])
    condition = model.add("Equal", [size, model.constant(np.int64(4))])
    model.add("If", [condition], then_branch=branch("then", "Relu", x), else_branch=branch("else", "Neg", x))
    proto = model.build()
    normal = normal_form(proto)
    assert "If" not in [node.op_type for node in normal.graph.node]
    np.testing.assert_array_equal(run(normal, model.feeds)[0], run(proto, model.feeds)[0])


def test_a_branch_that_is_chosen_at_run_time_is_refused(tmp_path):
    model = Model(13)
    x = model.input("x", random(1, 4))
    flag = model.input("flag", np.array(True))
    model.add("If", [flag], then_branch=branch("then", "Relu", x), else_branch=branch("else", "Neg", x))
    with pytest.raises(SparrowError, match="a branch is chosen while the network runs"):
        load_onnx(save(model.build(), tmp_path))


def test_empty_inputs_are_refused(tmp_path):
    model = conv().build()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
    with pytest.raises(SparrowError, match=r"dimensions of size zero: x\[2\]"):
        load_onnx(save(model, tmp_path))


def test_a_window_larger_than_its_input_is_refused(tmp_path):
    model = conv().build()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2
    with pytest.raises(SparrowError) as caught:
        load_onnx(save(model, tmp_path))
    assert "contradict" in str(caught.value) or "empty" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_diverged_are_named(tmp_path, value):
    model = Model()
    weights = random(2, 3, 3, 3)
    weights[0, 0, 0, 0] = value
    model.add("Conv", [model.input("x", random(1, 3, 5, 5)), model.constant(weights)])
    with pytest.raises(SparrowError, match="NaN or infinite values in constant0"):
        load_onnx(save(model.build(), tmp_path))


def test_an_infinite_mask_is_no_fault(tmp_path):
    model = Model()
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    model.add("Softmax", [model.add("Add", [model.input("x", random(4, 4)), model.constant(mask)])], axis=-1)
    assert load_onnx(save(model.build(), tmp_path)).outputs[0].shape == (4, 4)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scales_that_are_not_positive_are_named(tmp_path, scale):
    model = Model()
    grid = [model.constant(np.float32(scale)), model.constant(np.int8(0))]
    model.add("DequantizeLinear", [model.add("QuantizeLinear", [model.input("x", random(1, 4)), *grid]), *grid])
    with pytest.raises(SparrowError, match="zero or negative quantization scales in constant0"):
        load_onnx(save(model.build(), tmp_path))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_computed_in_float32(tmp_path, dtype):
    model = Model()
    model.add("MatMul", [model.input("x", random(1, 3).astype(dtype)), model.constant(random(3, 2).astype(dtype))])
    network = load_onnx(save(model.build(), tmp_path))
    assert [info.dtype for info in (*network.inputs, *network.outputs)] == ["float32", "float32"]
    assert network.reference is not None
    assert network.reference.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_doubles_beyond_float32_are_refused(tmp_path):
    model = Model()
    model.add("Mul", [model.input("x", np.ones((1, 2))), model.constant(np.array([1e300, 1.0]))])
    with pytest.raises(SparrowError, match="constant0 holds doubles of more than"):
        load_onnx(save(model.build(), tmp_path))


def test_types_that_the_interface_does_not_carry_are_listed(tmp_path):
    model = Model()
    for name, dtype in (("a", np.int16), ("b", np.uint16)):
        model.add("Cast", [model.input(name, np.ones((1, 2), dtype))], to=TensorProto.FLOAT)
    with pytest.raises(SparrowError, match=r"input a is int16, input b is uint16"):
        load_onnx(save(model.build("cast0_0", "cast1_0"), tmp_path))


def test_a_sequence_as_input_is_refused(tmp_path):
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["n"])], "g", [helper.make_value_info("s", kind)],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
    )  # fmt: skip
    with pytest.raises(SparrowError, match="input s is a sequence"):
        load_onnx(save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path))


def test_outputs_that_are_constants_or_inputs_come_out():
    model = Model()
    x = model.input("x", random(2, 3))
    model.add("Shape", [x])
    model.add("Identity", [x])
    proto = model.build("shape0_0", "identity1_0")
    for expected, found in zip(run(proto, model.feeds), run(normal_form(proto), model.feeds), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_outputs_without_a_stated_shape_are_inferred(tmp_path):
    model = conv().build()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert load_onnx(save(model, tmp_path)).outputs[0].shape == (1, 2, 3, 3)


def test_initializers_among_the_inputs_are_no_inputs(tmp_path):
    model = conv().build()
    tensor = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    network = load_onnx(save(model, tmp_path))
    assert [info.name for info in network.inputs] == ["x"]


def test_dropout_and_identity_leave_nothing():
    model = Model(13)
    ratio = model.constant(np.float32(0.5))
    name = model.add("Dropout", [model.add("Identity", [model.input("x", random(1, 4))]), ratio])
    model.add("Relu", [name])
    assert [node.op_type for node in normal_form(model.build()).graph.node] == ["Relu"]


@pytest.mark.tvm
def test_nodes_in_forms_that_the_importer_refuses_are_all_named(tmp_path):
    from sparrow.deploy.frontend_onnx import import_relax

    model = Model(17)
    x = model.input("x", random(1, 4, 6, 7))
    model.add("Shrink", [x])
    model.add("MaxPool", [x], outputs=2, kernel_shape=[2, 2])
    model.add("Det", [model.input("y", random(2, 3, 3))])
    proto = model.build("shrink0_0", "maxpool1_1", "det2_0")
    with pytest.raises(SparrowError, match="2 nodes cannot be lowered") as caught:
        import_relax(load_onnx(save(proto, tmp_path)))
    assert "MaxPool (node1): its indices are used" in str(caught.value)
    assert "Det (node2): unknown to the compiler" in str(caught.value)




def test_padding_that_is_computed_from_shapes_by_filling_and_reversing_becomes_numbers():
    """The form in which PyTorch exports padding that depends on the input's size."""
    model = Model(13)
    x = model.input("x", random(1, 3, 5, 6), ["batch", 3, "height", "width"])
    size = model.add("Gather", [model.add("Shape", [x]), model.constant(np.array([2]))])
    odd = model.add("Mod", [size, model.constant(np.array([2]))])
    given = model.add("Concat", [odd, model.constant(np.array([1, 0, 2]))], axis=0)
    rank = model.add("Sub", [model.constant(np.array([8])), model.add("Shape", [given])])
    zeros = model.add("ConstantOfShape", [rank], value=helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
    whole = model.add("Concat", [given, zeros], axis=0)
    pairs = model.add("Reshape", [whole, model.constant(np.array([-1, 2]))])
    bounds = [model.constant(np.array([value])) for value in (-1, -(2**62), 0, -1)]
    turned = model.add("Transpose", [model.add("Slice", [pairs, *bounds])], perm=[1, 0])
    pads = model.add("Reshape", [turned, model.constant(np.array([-1]))])
    model.add("Pad", [x, pads])
    model.shapes["x"] = model.feeds["x"].shape
    check(model, without=["Pad"], tolerance=0)

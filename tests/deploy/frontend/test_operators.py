"""Operators that the importer lacks or gets wrong: the rewritten network computes the same and holds none of them."""

import numpy as np
import pytest

from .models import Model, check, random

X = random(1, 4, 6, 7)


def one(op_type: str, *operands: object, opset: int = 17, outputs: int = 1, **attributes: object) -> Model:
    """A model of one operator: arrays are fed, tuples hold constants, None is an absent operand."""
    model = Model(opset)
    names = []
    for index, operand in enumerate(operands):
        if operand is None:
            names.append("")
        elif isinstance(operand, tuple):
            names.append(model.constant(operand[0]))
        else:
            names.append(model.input(f"x{index}", operand))
    model.add(op_type, names, outputs, **attributes)
    return model


def ints(*values: int) -> tuple[np.ndarray]:
    return (np.array(values, np.int64),)


def floats(*values: float) -> tuple[np.ndarray]:
    return (np.array(values, np.float32),)


@pytest.mark.parametrize(
    "model",
    [
        one("Split", X, opset=11, outputs=2, axis=1, split=[1, 3]),
        one("Split", X, ints(1, 3), opset=13, outputs=2, axis=1),
        one("Split", X, opset=13, outputs=2, axis=1),
        one("Split", X, opset=18, outputs=3, axis=-1, num_outputs=3),
    ],
)
def test_split_becomes_slices(model):
    operators = check(model, without=["Split"])
    assert set(operators) == {"Slice"}


@pytest.mark.parametrize("opset", [8, 9, 14, 17])
def test_batch_norm_of_any_version_becomes_mul_and_add(opset):
    parameters = [(np.abs(random(4, seed=seed)) + 0.5,) for seed in range(4)]
    assert check(one("BatchNormalization", X, *parameters, opset=opset)) == ["Mul", "Add"]


@pytest.mark.parametrize(
    "model",
    [
        one("Pad", X, opset=8, mode="constant", pads=[0, 0, 1, 2, 0, 0, 3, 1], value=0.5),
        one("Pad", X, ints(0, 0, 1, 2, 0, 0, 3, 1), floats(-1.0), opset=13),
        one("Pad", X, ints(0, 0, -1, 2, 0, 0, 1, -2), opset=13),
        one("Pad", X, ints(1, 2, 1, 1), None, ints(2, 3), opset=18),
        one("Pad", X, ints(*[0] * 8), opset=13),
    ],
)
def test_constant_pad_becomes_slices_and_concatenations(model):
    check(model, without=["Pad"])


@pytest.mark.parametrize(
    "model",
    [
        one("Upsample", X, opset=7, scales=[1.0, 1.0, 2.0, 2.0]),
        one("Upsample", X, floats(1, 1, 2, 2), opset=9, mode="linear"),
        one("Resize", X, floats(1, 1, 2, 2), opset=10, mode="linear"),
        one("Resize", X, floats(), floats(), ints(1, 4, 12, 14), opset=11, mode="nearest"),
        one("Resize", X, None, floats(1, 1, 1.5, 0.5), opset=13, mode="linear"),
        one("Resize", X, None, floats(1, 1, 1.5, 0.5), opset=13, mode="nearest"),
        one("Resize", X, None, floats(1, 1, 1.5, 0.5), opset=13, mode="cubic"),
        one("Resize", X, None, None, ints(9, 5), opset=18, mode="linear", axes=[2, 3]),
        one("Resize", X, None, floats(1, 1, 0.5, 0.5), opset=18, mode="linear", antialias=1),
        one("Resize", X, None, None, ints(1, 4, 9, 9), opset=18, mode="linear", keep_aspect_ratio_policy="not_larger"),
        one("Resize", random(1, 6, 7, 4), None, floats(1, 2, 2, 1), opset=13, mode="linear"),
        one("Resize", X, None, floats(1, 1, 2, 2), mode="linear", coordinate_transformation_mode="align_corners"),
    ],
)
def test_resize_has_a_form_that_the_importer_takes_as_onnx_means_it(model):
    check(model, without=["Upsample"])


@pytest.mark.parametrize(
    "model",
    [
        one("OneHot", np.array([1, 3], np.int64), ints(5), floats(0, 1)),
        one("OneHot", np.array([[1, 3]], np.int64), ints(5), floats(-1, 2), axis=0),
        one("CumSum", random(3, 5), (np.int64(1),)),
        one("CumSum", random(3, 5), (np.int64(0),), exclusive=1, reverse=1),
        one("CumSum", np.arange(6, dtype=np.int64).reshape(2, 3), (np.int64(1),)),
        one("TopK", random(3, 9), ints(4), outputs=2, axis=-1),
        one("TopK", random(3, 9), ints(4), outputs=2, axis=0 - 1, largest=0, opset=11),
        one("ScatterND", random(4, 5), (np.array([[1], [3]]),), random(2, 5)),
        one("ScatterElements", random(3, 3), (np.array([[1, 0, 2]]),), random(1, 3), axis=1),
        one("LpNormalization", X, axis=1),
        one("LpNormalization", X, axis=1, p=1),
        one("Celu", X, opset=12),
        one("Swish", X, opset=24),
        one("MeanVarianceNormalization", X, opset=13),
        one("GroupNormalization", X, floats(1, 2, 3, 4), floats(0, 1, 0, 1), opset=21, num_groups=2),
        one("CenterCropPad", X, ints(4, 9), opset=18, axes=[2, 3]),
        one("Gelu", X, opset=17, domain="com.microsoft"),
        one("QuickGelu", X, opset=17, domain="com.microsoft"),
        one("FusedMatMul", random(3, 5), (random(4, 5),), domain="com.microsoft", transB=1, alpha=0.5),
        one("FusedConv", X, (random(5, 4, 3, 3),), floats(*range(5)), domain="com.microsoft", activation="Relu"),
    ],
    ids=lambda model: model.nodes[0].op_type,
)
def test_operator_is_written_as_others(model):
    outputs = list(model.nodes[0].output)
    check(model, *outputs, without=[] if model.nodes[0].domain else [model.nodes[0].op_type])


def test_top_k_gives_the_first_of_equal_values():
    model = one("TopK", np.array([[2.0, 5.0, 5.0, 1.0]], np.float32), ints(3), outputs=2)
    check(model, *model.nodes[0].output, without=["TopK"])

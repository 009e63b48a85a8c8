"""Indices outside a tensor take the nearest element; constants that are within it are looked up without bounds."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from sparrow.deploy.passes.bounded_indices import BOUNDED

pytestmark = pytest.mark.tvm

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
OUTSIDE = np.array([-(2**40), -1, 0, 2, 3, 2**40])


def lowered(function: relax.Function) -> tvm.IRModule:
    module = relax.transform.LegalizeOps(BOUNDED)(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    assert not [op for op in BOUNDED if op in str(module["main"])]
    return module


def run(module: tvm.IRModule, *arrays: np.ndarray) -> np.ndarray:
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(array) for array in arrays)).numpy()


@pytest.mark.parametrize("axis", [0, 1])
def test_take_is_bounded(axis: int) -> None:
    @R.function
    def rows(x: R.Tensor((3, 4), "float32"), i: R.Tensor((6,), "int64")):
        return R.take(x, i, axis=0)

    @R.function
    def columns(x: R.Tensor((3, 4), "float32"), i: R.Tensor((6,), "int64")):
        return R.take(x, i, axis=1)

    expected = np.take(VALUES, OUTSIDE, axis=axis, mode="clip")
    np.testing.assert_array_equal(run(lowered((rows, columns)[axis]), VALUES, OUTSIDE), expected)


def test_gather_elements_is_bounded() -> None:
    @R.function
    def gather(x: R.Tensor((3, 4), "float32"), i: R.Tensor((3, 6), "int64")):
        return R.gather_elements(x, i, axis=1)

    indices = np.stack([OUTSIDE] * 3)
    expected = np.take_along_axis(VALUES, indices.clip(0, 3), axis=1)
    np.testing.assert_array_equal(run(lowered(gather), VALUES, indices), expected)


def test_gather_nd_is_bounded_by_the_axis_that_an_index_is_for() -> None:
    @R.function
    def gather(x: R.Tensor((3, 4), "float32"), i: R.Tensor((4, 2), "int64")):
        return R.gather_nd(x, i, batch_dims=0)

    @R.function
    def batched(x: R.Tensor((3, 4), "float32"), i: R.Tensor((3, 1), "int64")):
        return R.gather_nd(x, i, batch_dims=1)

    indices = np.array([[0, 3], [2, 2**40], [2**40, 1], [-5, -(2**40)]])
    np.testing.assert_array_equal(run(lowered(gather), VALUES, indices), VALUES[[0, 2, 2, 0], [3, 3, 1, 0]])
    indices = np.array([[3], [4], [-1]])
    np.testing.assert_array_equal(run(lowered(batched), VALUES, indices), VALUES[[0, 1, 2], [3, 3, 0]])


@pytest.mark.parametrize(("numbers", "bounded"), [([0, 2, 1], False), ([0, 3, 1], True), ([0, -1, 1], True)])
def test_constants_within_the_tensor_cost_nothing(numbers: list[int], bounded: bool) -> None:
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([3, 4], "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.take(x, relax.const(numbers, "int64"), axis=0)))
    module = relax.transform.LegalizeOps(BOUNDED)(builder.finalize())
    (lookup,) = [str(function) for variable, function in module.functions.items() if variable.name_hint != "main"]
    assert ("T.max" in lookup or "T.min" in lookup) == bounded

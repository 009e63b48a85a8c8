import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from sparrow.deploy.passes.sink_dequantize import sink_dequantize

from .comparison import assert_same

pytestmark = pytest.mark.tvm


def test_dequantize_moves_below_a_slice():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "int8")) -> R.Tensor((1, 4, 4, 4), "float32"):
            with R.dataflow():
                real = R.dequantize(x, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0)
                half = R.strided_slice(real, (2, 3), (0, 0), (8, 8), (2, 2))
                result = R.nn.relu(half)
                R.output(result)
            return result

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "int8")) -> R.Tensor((1, 4, 4, 4), "float32"):
            with R.dataflow():
                half = R.strided_slice(x, (2, 3), (0, 0), (8, 8), (2, 2))
                real = R.dequantize(half, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0)
                result = R.nn.relu(real)
                out = result
                R.output(out)
            return out

    assert_same(sink_dequantize(Before), After)


def test_concat_of_one_grid_and_exact_constants_becomes_integer():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "int8")) -> R.Tensor((1, 5), "float32"):
            with R.dataflow():
                real = R.dequantize(x, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0)
                result = R.concat((real, R.const([[1.0]], "float32")), axis=1)
                R.output(result)
            return result

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4), "int8")) -> R.Tensor((1, 5), "float32"):
            with R.dataflow():
                moved = R.concat((x, R.const([[-1]], "int8")), axis=1)
                result = R.dequantize(moved, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0)
                R.output(result)
            return result

    assert_same(sink_dequantize(Before), After)


def test_quantize_cancels_a_dequantize_of_the_same_grid():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "int8")) -> R.Tensor((4,), "int8"):
            with R.dataflow():
                real = R.dequantize(x, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0)
                flat = R.reshape(real, R.shape([4]))
                result = R.quantize(flat, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0, out_dtype="int8")
                R.output(result)
            return result

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4), "int8")) -> R.Tensor((4,), "int8"):
            with R.dataflow():
                result = R.reshape(x, R.shape([4]))
                R.output(result)
            return result

    assert_same(sink_dequantize(Before), After)


def test_another_grid_arithmetic_and_inexact_constants_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "int8")) -> R.Tensor((1, 5), "int8"):
            with R.dataflow():
                real = R.dequantize(x, R.const(0.5, "float32"), R.const(-3, "int8"), axis=0)
                half = R.sigmoid(real)
                other = R.quantize(half, R.const(0.25, "float32"), R.const(-3, "int8"), axis=1, out_dtype="int8")
                again = R.dequantize(other, R.const(0.25, "float32"), R.const(-3, "int8"), axis=0)
                joined = R.concat((again, R.const([[0.3]], "float32")), axis=1)
                result = R.quantize(joined, R.const(0.5, "float32"), R.const(0, "int8"), axis=1, out_dtype="int8")
                R.output(result)
            return result

    assert_same(sink_dequantize(Before), Before)

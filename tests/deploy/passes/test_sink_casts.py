import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from sparrow.deploy.passes.sink_casts import sink_casts

from .comparison import assert_same

pytestmark = pytest.mark.tvm


def test_casts_between_two_layers_cancel_across_data_movement():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float16"), y: R.Tensor((1, 4, 4, 4), "float16")) -> R.Tensor(
            (1, 8, 4, 4), "float16"
        ):
            with R.dataflow():
                real = R.astype(x, "float32")
                pooled = R.nn.max_pool2d(real, pool_size=[2, 2], strides=[2, 2])
                other = R.astype(y, "float32")
                joined = R.concat((pooled, other), axis=1)
                half = R.astype(joined, "float16")
                R.output(half)
            return half

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float16"), y: R.Tensor((1, 4, 4, 4), "float16")) -> R.Tensor(
            (1, 8, 4, 4), "float16"
        ):
            with R.dataflow():
                pooled = R.nn.max_pool2d(x, pool_size=[2, 2], strides=[2, 2])
                joined = R.concat((pooled, y), axis=1)
                R.output(joined)
            return joined

    assert_same(sink_casts(Before), After)


def test_arithmetic_in_float_and_tensors_of_two_types_keep_their_casts():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float16"), y: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 8), "float16"):
            with R.dataflow():
                real = R.astype(x, "float32")
                squashed = R.sigmoid(real)
                rounded = R.astype(squashed, "float16")
                again = R.astype(rounded, "float32")
                joined = R.concat((again, y), axis=1)
                half = R.astype(joined, "float16")
                R.output(half)
            return half

    assert_same(sink_casts(Before), Before)

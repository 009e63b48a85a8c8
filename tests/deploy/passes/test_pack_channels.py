import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparrow.deploy.operators import packed_shape
from sparrow.deploy.passes.pack_channels import pack_array, pack_channels
from sparrow.deploy.passes.relax_rewriter import main_bindings, operator_name, static_shape

pytestmark = pytest.mark.tvm


def steps(module: tvm.IRModule) -> list[tuple[str, tuple[int, ...]]]:
    """Name and result shape of each binding; a call of a TIR function goes by that function's name."""
    found = []
    for binding in main_bindings(module):
        name = operator_name(binding.value)
        if name == "relax.call_tir":
            name = binding.value.args[0].name_hint
        if name:
            found.append((name.removeprefix("relax."), static_shape(binding.var)))
    return found


def test_everything_between_two_operators_stays_packed():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 8, 8), "float32")) -> R.Tensor((1, 10), "float32"):
            with R.dataflow():
                a = R.call_dps_packed("sparrow.conv2d.0", (x,), out_ty=R.Tensor((1, 8, 8, 8), "float32"))
                b = R.sigmoid(a)
                c = R.multiply(a, b)
                d = R.nn.max_pool2d(c, pool_size=[2, 2], strides=[2, 2])
                e = R.strided_slice(d, (2, 3), (0, 0), (4, 4), (2, 2))
                f = R.mean(e, axis=[2, 3], keepdims=True)
                g = R.reshape(f, R.shape([1, 8]))
                h = R.call_dps_packed("sparrow.conv2d.1", (g,), out_ty=R.Tensor((1, 10), "float32"))
                R.output(h)
            return h

    assert steps(pack_channels(Before)) == [
        ("pack_channels", (1, 1, 8, 8, 4)),
        ("call_dps_packed", (1, 2, 8, 8, 4)),
        ("sigmoid", (1, 2, 8, 8, 4)),
        ("multiply", (1, 2, 8, 8, 4)),
        ("call_dps_packed", (1, 2, 4, 4, 4)),
        ("strided_slice", (1, 2, 2, 2, 4)),
        ("mean", (1, 2, 1, 1, 4)),
        ("reshape", (1, 2, 1, 1, 4)),
        ("call_dps_packed", (1, 3, 1, 1, 4)),
        ("unpack_channels", (1, 10)),
    ]


def test_a_gate_of_one_value_a_channel_stays_packed():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 4, 4), "float32")) -> R.Tensor((1, 8, 4, 4), "float32"):
            with R.dataflow():
                a = R.call_dps_packed("sparrow.conv2d.0", (x,), out_ty=R.Tensor((1, 8, 4, 4), "float32"))
                b = R.mean(a, axis=[2, 3], keepdims=True)
                c = R.call_dps_packed("sparrow.conv2d.1", (b,), out_ty=R.Tensor((1, 8, 1, 1), "float32"))
                d = R.sigmoid(c)
                e = R.multiply(a, d)
                f = R.call_dps_packed("sparrow.conv2d.2", (e,), out_ty=R.Tensor((1, 8, 4, 4), "float32"))
                R.output(f)
            return f

    names = [name for name, _ in steps(pack_channels(Before))]
    layer = "call_dps_packed"
    assert names == ["pack_channels", layer, "mean", layer, "sigmoid", "multiply", layer, "unpack_channels"]


def test_what_needs_nchw_gets_it():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 2, 2), "float32")) -> R.Tensor((1, 24), "float32"):
            with R.dataflow():
                a = R.call_dps_packed("sparrow.conv2d.0", (x,), out_ty=R.Tensor((1, 6, 2, 2), "float32"))
                b = R.concat((a, a), axis=1)  # 6 channels do not fill groups of four
                c = R.strided_slice(b, (1,), (0,), (6,), (1,))
                d = R.reshape(c, R.shape([1, 24]))
                R.output(d)
            return d

    names = [name for name, _ in steps(pack_channels(Before))]
    assert names == ["pack_channels", "call_dps_packed", "unpack_channels", "concat", "strided_slice", "reshape"]


def test_more_than_four_dimensions_and_scalars_over_tensors_stay_as_they_are():
    """A channel shuffle, and one over a packed tensor."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 4, 4), "float32")) -> R.Tensor((1, 8, 4, 4), "float32"):
            with R.dataflow():
                a = R.call_dps_packed("sparrow.conv2d.0", (x,), out_ty=R.Tensor((1, 8, 4, 4), "float32"))
                b = R.reshape(a, R.shape([1, 2, 4, 4, 4]))
                c = R.permute_dims(b, axes=[0, 2, 1, 3, 4])
                d = R.reshape(c, R.shape([1, 8, 4, 4]))
                e = R.divide(R.const(1.0, "float32"), d)
                R.output(e)
            return e

    assert steps(pack_channels(Before))[1:] == [
        ("call_dps_packed", (1, 2, 4, 4, 4)),
        ("unpack_channels", (1, 8, 4, 4)),
        ("reshape", (1, 2, 4, 4, 4)),
        ("permute_dims", (1, 4, 2, 4, 4)),
        ("reshape", (1, 8, 4, 4)),
        ("divide", (1, 8, 4, 4)),
    ]


def test_max_pooling_and_quantization_of_an_image_are_sparrows():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 9, 8), "float32")) -> R.Tensor((2, 8, 5, 4), "int8"):
            with R.dataflow():
                a = R.quantize(x, R.const(0.5, "float32"), R.const(3, "int8"), axis=1, out_dtype="int8")
                b = R.call_dps_packed("sparrow.conv2d.0", (a,), out_ty=R.Tensor((2, 8, 9, 8), "int8"))
                c = R.nn.max_pool2d(b, pool_size=[3, 3], strides=[2, 2], padding=[1, 1, 1, 1])
                d = R.call_dps_packed("sparrow.conv2d.1", (c,), out_ty=R.Tensor((2, 8, 5, 4), "int8"))
                R.output(d)
            return d

    values = [binding.value for binding in main_bindings(pack_channels(Before))]
    calls = [value for value in values if not isinstance(value, relax.Var)]
    found = {str(call.args[0].global_symbol): call.args[1].fields[1:] for call in calls
             if operator_name(call) == "relax.call_dps_packed"}  # fmt: skip
    quantize, pool = found["spw_quantize_qa8_f32_run"], found["spw_max_pool_qa8_run"]
    assert [number.value for number in quantize] == [2, 3, 72, 0.5, 3]
    assert [number.value for number in pool] == [4, 9, 8, 5, 4, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 8, 2, 2), (3, 6)])
def test_pack_array_puts_each_value_where_the_layout_says(shape):
    values = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    packed = pack_array(values)
    assert packed.shape == packed_shape(shape)
    for index in np.ndindex(*shape):
        n, c, h, w = (0, index[1], 0, index[0]) if len(shape) == 2 else index
        assert packed[n, c // 4, h, w, c % 4] == values[index]
    assert np.count_nonzero(packed) == values.size

"""Gives every tensor that a Sparrow operator touches the channel-packed layout, and converts where the rest needs NCHW.

The partition's operators speak of logical NCHW tensors. Here each becomes a call on [N, ceil(C / 4), H, W, 4]
(``kernels/csrc/spw.h``). Operators that do not care about the layout follow the layout of their operand, so that
conversions stay at the borders of the network. Padding channels hold unspecified values throughout.
"""

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax, te, tirx

from sparrow.deploy.operators import CHANNEL_PACK, EXTERN_PREFIX, packed_shape
from sparrow.deploy.passes.relax_rewriter import (
    MainRewriter,
    constant_array,
    dtype_of,
    operator_name,
    static_shape,
)
from sparrow.deploy.passes.sink_dequantize import scalar_grid

# Elementwise operators of one tensor; further operands are scalars or scalar constants.
ELEMENTWISE = {
    "relax.nn.relu",
    "relax.nn.relu6",
    "relax.clip",
    "relax.dequantize",
    "relax.sigmoid",
    "relax.tanh",
    "relax.nn.leakyrelu",
    "relax.nn.silu",
    "relax.nn.gelu",
    "relax.astype",
    "relax.negative",
    "relax.abs",
    "relax.exp",
    "relax.sqrt",
}
# Element type -> its token in the names of kernels/csrc/spw.h.
MAX_POOLS = {"int8": "qa8", "float16": "f16", "float32": "f32"}
BINARY = {"relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.maximum", "relax.minimum"}


def pack_channels(module: tvm.IRModule) -> tvm.IRModule:
    """Apply the pass to ``main``."""
    return _PackChannels(module).run()


class _PackChannels(MainRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.packed: dict[relax.Var, relax.Var] = {}  # old variable -> its packed form
        self.wanted = {  # old variables that a Sparrow layer reads
            operand for binding in self.bindings if _is_layer(binding.value) for operand in binding.value.args[1].fields
        }
        self.rules = {
            "relax.mean": self._spatial_mean,
            "relax.strided_slice": self._spatial_slice,
            "relax.concat": self._concat,
            "relax.reshape": self._reshape,
            "relax.nn.max_pool2d": self._max_pool,
            "relax.nn.avg_pool2d": self._pool,
            **{name: self._elementwise for name in ELEMENTWISE},
            "relax.quantize": self._quantize,
            **{name: self._binary for name in BINARY},
        }

    def rewrite(self, var: relax.Var, value: tvm.ir.Expr) -> tvm.ir.Expr | None:
        if isinstance(value, relax.Var):  # an alias
            if value in self.packed:
                self.packed[var] = self.packed[value]
            return self.new.get(value)
        name = operator_name(value)
        if _is_layer(value):
            operands = relax.Tuple([self._pack(operand) for operand in value.args[1].fields])
            output = relax.TensorType(packed_shape(static_shape(var)), dtype_of(var))
            self.packed[var] = self.emit(relax.call_dps_packed(value.args[0], operands, output), var.name)
            return None
        if (rule := self.rules.get(name)) is not None and (packed := rule(var, value)) is not None:
            self.packed[var] = self.emit(packed, var.name)
            return None
        return super().rewrite(var, value)

    def renew(self, expression: tvm.ir.Expr) -> tvm.ir.Expr:
        """Replace old variables, unpacking those that exist in packed form only."""
        if isinstance(expression, relax.Var) and expression not in self.new and expression in self.packed:
            shape = static_shape(expression)
            self.new[expression] = self.builder.emit_te(
                _unpack, self.packed[expression], shape, primfunc_name_hint="unpack_channels"
            )
        return super().renew(expression)

    def _pack(self, expression: tvm.ir.Expr) -> tvm.ir.Expr:
        if (values := constant_array(expression)) is not None:
            return relax.const(pack_array(values))
        if expression not in self.packed:
            self.packed[expression] = self.builder.emit_te(
                _pack, self.renew(expression), primfunc_name_hint="pack_channels"
            )
        return self.packed[expression]

    # Rules: the packed form of a call, or None where it has to run on NCHW.

    def _is_packed(self, *expressions: tvm.ir.Expr) -> bool:
        return all(isinstance(item, relax.Var) and item in self.packed for item in expressions)

    def _elementwise(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        if not self._is_packed(call.args[0]) or not all(_is_scalar(argument) for argument in call.args[1:]):
            return None
        return self.call_with(call, [self.packed[call.args[0]], *call.args[1:]])

    def _binary(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        left, right = call.args
        if self._is_packed(left) and _is_scalar(right):
            return self.call_with(call, [self.packed[left], right])
        if not self._is_packed(left, right):
            return None
        shapes = static_shape(left), static_shape(right)
        # A gate of one value for each channel, as squeeze and excitation multiplies by, is broadcast over the image.
        if shapes[0] != shapes[1] and not (len(shapes[0]) == len(shapes[1]) == 4 and shapes[0][:2] == shapes[1][:2]):
            return None
        # Padding channels come out of an operator as zeros: 0 / 0 makes a NaN, which times a zero weight stays one.
        if call.op.name == "relax.divide" and shapes[0][1] % CHANNEL_PACK:
            return None
        return self.call_with(call, [self.packed[left], self.packed[right]])

    def _spatial_mean(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        axes = sorted(int(axis) % 4 for axis in call.attrs.axis or [])
        if axes != [2, 3] or not call.attrs.keepdims or not self._is_packed(call.args[0]):
            return None
        return relax.op.mean(self.packed[call.args[0]], [2, 3], keepdims=True)

    def _spatial_slice(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        axes = [int(axis.value) for axis in call.args[1].fields]
        if not self._is_packed(call.args[0]) or not set(axes) <= {2, 3}:
            return None
        return self.call_with(call, [self.packed[call.args[0]], *call.args[1:]])

    def _concat(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        fields, axis = call.args[0].fields, int(call.attrs.axis) % len(static_shape(var))
        if len(static_shape(var)) != 4 or axis == 0 or not any(self._is_packed(field) for field in fields):
            return None
        if axis == 1 and any(static_shape(field)[1] % CHANNEL_PACK for field in fields):
            return None
        return relax.op.concat([self._pack(field) for field in fields], axis)

    def _reshape(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        source, target = static_shape(call.args[0]), static_shape(var)
        if len(source) not in (2, 4) or len(target) not in (2, 4):
            return None
        if not self._is_packed(call.args[0]) or packed_shape(source) != packed_shape(target):
            return None
        same_order = len(source) == len(target) or int(np.prod(source[2:])) == 1
        return relax.op.reshape(self.packed[call.args[0]], packed_shape(target)) if same_order else None

    def _quantize(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        source, grid = call.args[0], scalar_grid(call)
        shape = static_shape(source)
        is_image = len(shape) == 4 and (dtype_of(source), dtype_of(var)) == ("float32", "int8")
        if self._is_packed(source) or not is_image or grid is None or var not in self.wanted:
            return self._elementwise(var, call)
        numbers = [*shape[:2], shape[2] * shape[3], grid.scale, grid.zero_point]
        return _call("spw_quantize_qa8_f32_run", self.renew(source), numbers, packed_shape(shape), "int8")

    def _max_pool(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        attributes, source = call.attrs, call.args[0]
        plain = attributes.layout == "NCHW" and all(int(step) == 1 for step in attributes.dilation)
        dtype = dtype_of(source)
        if not self._is_packed(source) or dtype not in MAX_POOLS or not plain:
            return self._pool(var, call)
        shape, target = packed_shape(static_shape(source)), packed_shape(static_shape(var))
        window = [*attributes.pool_size, *attributes.strides, *list(attributes.padding)[:2]]
        numbers = [shape[0] * shape[1], *shape[2:4], *target[2:4], *map(int, window)]
        return _call(f"spw_max_pool_{MAX_POOLS[dtype]}_run", self.packed[source], numbers, target, dtype)

    def _pool(self, var: relax.Var, call: tvm.ir.Call) -> tvm.ir.Call | None:
        if not self._is_packed(call.args[0]) or call.attrs.layout != "NCHW":
            return None
        attributes = call.attrs
        operator = relax.op.nn.max_pool2d if call.op.name == "relax.nn.max_pool2d" else relax.op.nn.avg_pool2d
        return operator(
            self.packed[call.args[0]],
            attributes.pool_size,
            attributes.strides,
            attributes.padding,
            attributes.dilation,
            attributes.ceil_mode,
            attributes.count_include_pad,
            layout="NCHW4c",
            out_layout="NCHW4c",
        )


def _is_layer(expression: tvm.ir.Expr) -> bool:
    return operator_name(expression) == "relax.call_dps_packed" and str(expression.args[0].global_symbol).startswith(
        EXTERN_PREFIX
    )


def _call(
    function: str, source: tvm.ir.Expr, numbers: Sequence[float], shape: tuple[int, ...], dtype: str
) -> tvm.ir.Call:
    """Call a function of kernels/csrc/spw.h that has no weights: (input, numbers, output, context)."""
    operands = relax.Tuple([source, *map(relax.prim_value, numbers)])
    return relax.call_dps_packed(function, operands, relax.TensorType(shape, dtype))


def _is_scalar(expression: tvm.ir.Expr) -> bool:
    values = constant_array(expression)
    return values.size == 1 if values is not None else not isinstance(expression.ty, relax.TensorType)


def pack_array(values: np.ndarray) -> np.ndarray:
    """Pack the channels of an (N, C, H, W) or (M, K) array, padding channels zero."""
    target = packed_shape(values.shape)
    image = values.T[None, :, None, :] if values.ndim == 2 else values
    padded = np.zeros((target[0], target[1] * CHANNEL_PACK, *target[2:4]), values.dtype)
    padded[:, : image.shape[1]] = image
    blocks = padded.reshape(target[0], target[1], CHANNEL_PACK, *target[2:4])
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 4, 2))


def _pack(source: te.Tensor) -> te.Tensor:
    shape = tuple(int(size) for size in source.shape)
    channels = shape[1]

    def element(n: tirx.Var, c: tirx.Var, h: tirx.Var, w: tirx.Var, k: tirx.Var) -> tvm.ir.Expr:
        channel = c * CHANNEL_PACK + k
        value = source(w, channel) if len(shape) == 2 else source(n, channel, h, w)
        if channels % CHANNEL_PACK == 0:
            return value
        return tirx.if_then_else(channel < channels, value, tirx.const(0, source.dtype))

    return te.compute(packed_shape(shape), element, name="pack_channels")


def _unpack(source: te.Tensor, shape: tuple[int, ...]) -> te.Tensor:
    def element(*index: tirx.Var) -> tvm.ir.Expr:
        n, channel, h, w = (0, index[1], 0, index[0]) if len(shape) == 2 else index
        return source(n, channel // CHANNEL_PACK, h, w, channel % CHANNEL_PACK)

    return te.compute(shape, element, name="unpack_channels")

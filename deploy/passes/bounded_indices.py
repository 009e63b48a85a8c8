"""Lowering of operators that look elements up: an index outside, which an input may hold, takes the nearest element.

TVM's own lowering does not look: it would read whatever lies in memory there.
"""

import math

import tvm
from tvm import relax, topi

from sparrow.deploy.passes.relax_rewriter import static_shape


def bounded_take(builder: relax.BlockBuilder, call: tvm.ir.Call) -> tvm.ir.Expr:
    """Lower ``relax.take``; constant indices that are within the tensor need no bounds."""
    values, indices = call.args
    mode, axis = call.attrs.mode, call.attrs.axis
    size = math.prod(static_shape(values)) if axis is None else static_shape(values)[int(axis)]
    if mode == "fast" and not _within(indices, size):
        mode = "clip"
    return builder.call_te(topi.take, values, indices, axis, mode=mode)


def bounded_gather(builder: relax.BlockBuilder, call: tvm.ir.Call) -> tvm.ir.Expr:
    """Lower ``relax.gather_elements``."""
    axis = int(call.attrs.axis)
    last = static_shape(call.args[0])[axis] - 1

    def gather(values: tvm.te.Tensor, indices: tvm.te.Tensor) -> tvm.te.Tensor:
        return topi.gather(values, axis, topi.clip(indices, 0, last))

    return builder.call_te(gather, *call.args, primfunc_name_hint="gather_elements")


def bounded_gather_nd(builder: relax.BlockBuilder, call: tvm.ir.Call) -> tvm.ir.Expr:
    """Lower ``relax.gather_nd``, whose last axis of indices counts the axes that they are for."""
    batch = int(call.attrs.batch_dims)
    sizes = static_shape(call.args[0])[batch:]

    def gather(values: tvm.te.Tensor, indices: tvm.te.Tensor) -> tvm.te.Tensor:
        def bounded(*place: tvm.tirx.Var) -> tvm.ir.Expr:
            last = tvm.tirx.const(sizes[0] - 1, indices.dtype)
            for axis, size in enumerate(sizes[1:], 1):
                last = tvm.tirx.Select(place[-1] == axis, tvm.tirx.const(size - 1, indices.dtype), last)
            return tvm.tirx.Max(tvm.tirx.Min(indices(*place), last), tvm.tirx.const(0, indices.dtype))

        rank = len(indices.shape)
        first_by_axis = topi.transpose(tvm.te.compute(indices.shape, bounded), [rank - 1, *range(rank - 1)])
        return topi.gather_nd(values, first_by_axis, batch)

    return builder.call_te(gather, *call.args, primfunc_name_hint="gather_nd")


def _within(indices: tvm.ir.Expr, size: int) -> bool:
    if not isinstance(indices, tvm.ir.GenericConst):
        return False
    numbers = indices.value.numpy()
    return bool(numbers.size == 0 or (numbers.min() >= 0 and numbers.max() < size))


# What LegalizeOps takes in place of TVM's own.
BOUNDED = {
    "relax.take": bounded_take,
    "relax.gather_elements": bounded_gather,
    "relax.gather_nd": bounded_gather_nd,
}

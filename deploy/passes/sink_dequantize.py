"""Moves dequantize below operators that only move data, so that they move bytes and their consumer stays integer.

    dequantize -> strided_slice -> add      becomes      strided_slice -> dequantize -> add

A quantize that meets a dequantize of the same grid cancels it.
"""

import numpy as np
import tvm
from tvm import relax

from sparrow.deploy.operators import Grid
from sparrow.deploy.passes.relax_rewriter import MainRewriter, constant_array, operator_name

# First operand is the data; a maximum commutes with a grid because the grid is monotonic.
DATA_MOVEMENT = {
    "relax.strided_slice",
    "relax.reshape",
    "relax.flatten",
    "relax.permute_dims",
    "relax.squeeze",
    "relax.expand_dims",
    "relax.nn.max_pool2d",
}


def sink_dequantize(module: tvm.IRModule) -> tvm.IRModule:
    """Apply the pass to ``main``."""
    return _SinkDequantize(module).run()


def scalar_grid(call: tvm.ir.Call) -> Grid | None:
    """Read the grid of a per-tensor int8 quantize or dequantize call; None if it is of another kind."""
    scale, zero_point = (constant_array(argument) for argument in call.args[1:3])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    return Grid(float(scale.reshape(())), int(zero_point.reshape(())))


class _SinkDequantize(MainRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        # New float variable -> its integer tensor and the dequantize call that made it.
        self.dequantized: dict[relax.Var, tuple[tvm.ir.Expr, tvm.ir.Call]] = {}

    def rewrite(self, var: relax.Var, value: tvm.ir.Expr) -> tvm.ir.Expr | None:
        name = operator_name(value)
        value = self.renew(value)
        if name == "relax.dequantize" and scalar_grid(value) is not None and isinstance(value.args[0], relax.Var):
            return self._dequantize(value.args[0], value, var.name)
        if name == "relax.quantize" and (source := self.dequantized.get(value.args[0])) is not None:
            integer, dequantize = source
            if scalar_grid(value) == scalar_grid(dequantize) and value.attrs.out_dtype == integer.ty.dtype:
                return integer
        if name in DATA_MOVEMENT and (source := self.dequantized.get(value.args[0])) is not None:
            integer, dequantize = source
            moved = self.emit(self.call_with(value, [integer, *value.args[1:]]))
            return self._dequantize(moved, dequantize, var.name)
        if name == "relax.concat" and (moved := self._concat(value)) is not None:
            return self._dequantize(moved[0], moved[1], var.name)
        return self.emit(value, var.name)

    def _dequantize(self, integer: tvm.ir.Expr, like: tvm.ir.Call, name: str) -> relax.Var:
        # One scale for the whole tensor: the axis means nothing, and 0 fits whatever rank the data has by now.
        call = relax.op.dequantize(integer, *like.args[1:], axis=0, out_dtype=like.attrs.out_dtype)
        new = self.emit(call, name)
        self.dequantized[new] = (integer, like)
        return new

    def _concat(self, call: tvm.ir.Call) -> tuple[relax.Var, tvm.ir.Call] | None:
        """Concatenate integers when every operand lies on one grid, constants included."""
        fields = call.args[0].fields
        sources = [self.dequantized[field] for field in fields if field in self.dequantized]
        grid = scalar_grid(sources[0][1]) if sources else None
        if grid is None or any(scalar_grid(dequantize) != grid for _, dequantize in sources):
            return None
        dequantize = sources[0][1]
        dtype = str(sources[0][0].ty.dtype)
        integers = []
        for field in fields:
            if field in self.dequantized:
                integers.append(self.dequantized[field][0])
                continue
            values = constant_array(field)
            if values is None:
                return None
            exact = values / np.float64(grid.scale) + grid.zero_point
            rounded = np.rint(exact)
            if np.any(rounded != exact) or np.any(rounded != np.clip(rounded, *_limits(dtype))):
                return None
            integers.append(relax.const(rounded.astype(dtype)))
        return self.emit(self.call_with(call, [relax.Tuple(integers)])), dequantize


def _limits(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)

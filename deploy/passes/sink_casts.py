"""Moves casts from half to float below operators that only move data, and cancels those that meet their opposite.

    astype float32 -> max_pool2d -> astype float16      becomes      max_pool2d

The partition puts a cast on each side of a layer in half precision. Between two such layers nothing is left of them;
elsewhere they end up inside an operator that computes in float.
"""

import tvm
from tvm import relax

from sparrow.deploy.passes.relax_rewriter import MainRewriter, dtype_of, operator_name
from sparrow.deploy.passes.sink_dequantize import DATA_MOVEMENT


def sink_casts(module: tvm.IRModule) -> tvm.IRModule:
    """Apply the pass to ``main``."""
    return _SinkCasts(module).run()


class _SinkCasts(MainRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.halves: dict[relax.Var, tvm.ir.Expr] = {}  # new float variable -> the half tensor that was cast to it

    def rewrite(self, var: relax.Var, value: tvm.ir.Expr) -> tvm.ir.Expr | None:
        name = operator_name(value)
        value = self.renew(value)
        if name == "relax.astype":
            source, dtype = value.args[0], str(value.attrs.dtype)
            if (half := self.halves.get(source)) is not None and dtype == dtype_of(half):
                return half
            if isinstance(source, relax.Var) and (dtype_of(source), dtype) == ("float16", "float32"):
                return self._cast(source, var.name)
        elif name in DATA_MOVEMENT and (half := self.halves.get(value.args[0])) is not None:
            return self._cast(self.emit(self.call_with(value, [half, *value.args[1:]])), var.name)
        elif name == "relax.concat":
            halves = [self.halves.get(field) for field in value.args[0].fields]
            if all(half is not None for half in halves):
                return self._cast(self.emit(self.call_with(value, [relax.Tuple(halves)])), var.name)
        return self.emit(value, var.name)

    def _cast(self, half: tvm.ir.Expr, name: str) -> relax.Var:
        new = self.emit(relax.op.astype(half, "float32"), name)
        self.halves[new] = half
        return new

"""Recovers maximum and minimum from the loops that TVM's ONNX importer makes of ``Clip``.

The importer calls a TIR function for each bound, and replaces a bound that is NaN at run time. With a constant bound
both are known, and the operator is one that other passes can see through.
"""

from collections.abc import Callable

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, te, topi

from sparrow.deploy.passes.relax_rewriter import MainRewriter, constant_array, operator_name

BOUNDS = {"maximum": (topi.maximum, relax.op.maximum), "minimum": (topi.minimum, relax.op.minimum)}


def recover_clip(module: tvm.IRModule) -> tvm.IRModule:
    """Apply the pass to ``main``."""
    return _RecoverClip(module).run()


class _RecoverClip(MainRewriter):
    def rewrite(self, var: relax.Var, value: tvm.ir.Expr) -> tvm.ir.Expr | None:
        if operator_name(value) == "relax.call_tir" and len(value.args[1].fields) == 2:
            data, bound = value.args[1].fields
            constant = self._bound(bound)
            for name, (compute, operator) in BOUNDS.items():
                if constant is not None and value.args[0].name_hint.startswith(name):
                    if self._computes(value.args[0], compute, data, bound):
                        return self.emit(operator(self.renew(data), relax.const(constant)), var.name)
        return super().rewrite(var, value)

    def _bound(self, expression: tvm.ir.Expr) -> np.ndarray | None:
        """Value of a scalar bound: a constant, or where(isnan(constant), other, constant)."""
        call = self.definition(expression)
        if operator_name(call) == "relax.where":
            test = self.definition(call.args[0])
            expression = call.args[2]
            if operator_name(test) != "relax.isnan" or not test.args[0].same_as(expression):
                return None
        values = constant_array(expression)
        return values if values is not None and values.size == 1 and not np.isnan(values).any() else None

    def _computes(self, function: tvm.ir.GlobalVar, compute: Callable[..., te.Tensor], *operands: tvm.ir.Expr) -> bool:
        """Tell whether a TIR function is TVM's own form of an operator."""
        tensors = [te.placeholder(operand.ty.shape.values, str(operand.ty.dtype)) for operand in operands]
        expected = te.create_prim_func([*tensors, compute(*tensors)])
        return bool(tvm_ffi.structural_equal(self.module[function].body, expected.body, map_free_vars=True))

"""Rebuilding the main function binding by binding: what every pass of Sparrow's has in common."""

from collections import Counter
from typing import Any

import numpy as np
import tvm
from tvm import relax


class MainRewriter:
    """Rebuilds ``main``, a single dataflow block, one binding after the other.

    A pass subclasses it and overrides ``rewrite``. The module's other functions are kept.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.main: relax.Function = module["main"]
        rest = module.clone()
        del rest["main"]
        self.builder = relax.BlockBuilder(rest)
        self.bindings = main_bindings(module)
        self.definitions: dict[relax.Var, Any] = {binding.var: binding.value for binding in self.bindings}
        self.new: dict[relax.Var, tvm.ir.Expr] = {}

    def rewrite(self, var: relax.Var, value: tvm.ir.Expr) -> tvm.ir.Expr | None:
        """Give the new value of a binding, operands already renewed by ``renew``; None drops the binding."""
        return self.emit(self.renew(value), var.name)

    def output(self, expression: tvm.ir.Expr) -> tvm.ir.Expr:
        """Give the new form of (one element of) the function's result."""
        return self.renew(expression)

    def run(self) -> tvm.IRModule:
        """Rebuild the function and return the new module, dead bindings removed."""
        params = [relax.Var(param.name, param.ty) for param in self.main.params]
        self.new.update(zip(self.main.params, params, strict=True))
        with self.builder.function("main", params, attrs=dict(self.main.attrs or {})):
            with self.builder.dataflow():
                for binding in self.bindings:
                    if (renewed := self.rewrite(binding.var, binding.value)) is not None:
                        self.new[binding.var] = renewed
                result = self.main.body.body
                if isinstance(self.definitions.get(result), relax.Tuple):
                    result = self.definitions[result]
                if isinstance(result, relax.Tuple):
                    result = self.builder.emit_output(relax.Tuple([self.output(field) for field in result.fields]))
                else:
                    result = self.builder.emit_output(self.output(result))
            self.builder.emit_func_output(result)
        return relax.transform.DeadCodeElimination(["main"])(self.builder.finalize())

    def emit(self, expression: tvm.ir.Expr, name: str = "") -> relax.Var:
        """Bind an expression to a new variable."""
        return self.builder.emit(expression, name)

    def renew(self, expression: tvm.ir.Expr) -> tvm.ir.Expr:
        """Replace old variables by what they became."""
        if isinstance(expression, relax.Var):
            return self.new.get(expression, expression)
        if isinstance(expression, relax.Tuple):
            return relax.Tuple([self.renew(field) for field in expression.fields])
        if isinstance(expression, relax.TupleGetItem):
            return relax.TupleGetItem(self.renew(expression.tuple_value), expression.index)
        if isinstance(expression, tvm.ir.Call):
            return self.call_with(expression, [self.renew(argument) for argument in expression.args])
        return expression

    def definition(self, expression: tvm.ir.Expr | None) -> Any:
        """What an old variable was bound to; None for a parameter and for anything but a variable."""
        return self.definitions.get(expression) if isinstance(expression, relax.Var) else None

    @staticmethod
    def call_with(call: tvm.ir.Call, arguments: list[tvm.ir.Expr]) -> tvm.ir.Call:
        """Copy a call with other operands."""
        return tvm.ir.Call(call.op, arguments, call.attrs, call.ty_args)


def main_bindings(module: tvm.IRModule) -> list[relax.VarBinding]:
    """List the bindings of ``main`` in order of execution."""
    return [binding for block in module["main"].body.blocks for binding in block.bindings]


def use_counts(module: tvm.IRModule) -> Counter[relax.Var]:
    """Count how often each variable of ``main`` is read; being returned counts as one."""
    counts: Counter[relax.Var] = Counter()

    def visit(expression: tvm.ir.Expr) -> None:
        if isinstance(expression, relax.Var):
            counts[expression] += 1
        elif isinstance(expression, relax.Tuple):
            for field in expression.fields:
                visit(field)
        elif isinstance(expression, relax.TupleGetItem):
            visit(expression.tuple_value)
        elif isinstance(expression, tvm.ir.Call):
            for argument in expression.args:
                visit(argument)

    for binding in main_bindings(module):
        visit(binding.value)
    visit(module["main"].body.body)
    return counts


def operator_name(expression: tvm.ir.Expr | None) -> str:
    """Name of the operator that an expression calls, such as ``relax.nn.conv2d``, or an empty string."""
    if isinstance(expression, tvm.ir.Call) and isinstance(expression.op, tvm.ir.Op):
        return str(expression.op.name)
    return ""


def constant_array(expression: tvm.ir.Expr) -> np.ndarray | None:
    """Value of a constant, or None for anything else."""
    return expression.value.numpy() if isinstance(expression, tvm.ir.GenericConst) else None


def static_shape(expression: tvm.ir.Expr) -> tuple[int, ...]:
    """Shape of a tensor expression as Python integers."""
    return tuple(int(dimension) for dimension in expression.ty.shape)


def dtype_of(expression: tvm.ir.Expr) -> str:
    """Element type of a tensor expression, such as ``int8``."""
    return str(expression.ty.dtype)

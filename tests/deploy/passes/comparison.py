"""Comparing a module with the one that a pass is expected to make of another."""

import tvm


def assert_same(found: tvm.IRModule, expected: tvm.IRModule) -> None:
    """Both modules are the same but for variables that only name another one."""
    canonical = tvm.relax.transform.CanonicalizeBindings()
    tvm.ir.assert_structural_equal(canonical(found), canonical(expected))

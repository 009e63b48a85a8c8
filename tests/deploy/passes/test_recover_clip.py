import numpy as np
import pytest

from sparrow.deploy.frontend_onnx import import_relax, load_onnx
from sparrow.deploy.passes.recover_clip import recover_clip
from sparrow.deploy.passes.relax_rewriter import constant_array, main_bindings, operator_name

from ..networks import NetworkBuilder

pytestmark = pytest.mark.tvm


def bounds(module) -> list[tuple[str, float]]:
    calls = [binding.value for binding in main_bindings(module) if operator_name(binding.value)]
    return [(operator_name(call), float(constant_array(call.args[1]))) for call in calls]


def clip(net: NetworkBuilder, low: float | None, high: float | None) -> str:
    names = [net.constant(name, np.float32(value)) if value is not None else ""
             for name, value in (("low", low), ("high", high))]  # fmt: skip
    return net.operator("Clip", ["input", *names], "y")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.0, 2.0, [("relax.maximum", -1.0), ("relax.minimum", 2.0)]),
        (None, 6.0, [("relax.minimum", 6.0)]),
        (0.5, None, [("relax.maximum", 0.5)]),
    ],
)
def test_constant_bounds_become_operators(save_model, low, high, expected):
    net = NetworkBuilder()
    model = net.model(clip(net, low, high), (1, 2, 3, 3), (1, 2, 3, 3))
    assert bounds(recover_clip(import_relax(load_onnx(save_model(model))))) == expected


def test_a_computed_bound_stays_a_loop(save_model):
    net = NetworkBuilder()
    low = net.operator("ReduceMean", ["input"], "low", keepdims=0)
    model = net.model(net.operator("Clip", ["input", low], "y"), (2, 3), (2, 3))
    module = recover_clip(import_relax(load_onnx(save_model(model))))
    assert "relax.call_tir" in [operator_name(binding.value) for binding in main_bindings(module)]

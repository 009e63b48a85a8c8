"""Convolutions and products in the forms that kernels take."""

import numpy as np
import pytest

from .models import Model, check, normal_form, random
from .test_operators import one

X = random(1, 4, 6, 7)
ROW = random(1, 4, 9)


@pytest.mark.parametrize(
    "model",
    [
        one("Conv", ROW, (random(5, 4, 3),), (random(5),), pads=[1, 1]),
        one("Conv", ROW, (random(4, 1, 3),), group=4, strides=[2], pads=[0, 2]),
        one("Conv", ROW, (random(5, 4, 3),), dilations=[2], auto_pad="VALID"),
    ],
)
def test_a_convolution_of_one_dimension_is_one_on_an_image(model):
    assert check(model).count("Conv") == 1


@pytest.mark.parametrize(
    "model",
    [
        one("MatMul", random(2, 3, 5), (random(5, 7),)),
        one("MatMul", random(1, 2, 3, 5), (random(5, 7),)),
        one("MatMul", random(5), (random(5, 7),)),
        one("Gemm", random(3, 5), (random(5, 7),), (random(7),), alpha=0.5, beta=2.0),
        one("Gemm", random(5, 3), (random(7, 5),), transA=1, transB=1, alpha=2.0),
    ],
)
def test_a_product_is_one_of_rows(model):
    check(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [2, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [3, 3], "pads": [0, 1, 2, 1]},
        {"strides": [2, 3], "pads": [1, 0, 0, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [12, 14]},
        {"strides": [1, 2], "dilations": [2, 2]},
        {"strides": [4, 4], "output_padding": [3, 2]},
        {},
    ],
    ids=str,
)
def test_a_transposed_convolution_is_one_of_phases(settings):
    model = one("ConvTranspose", X, (random(4, 5, 3, 3),), (random(5),), **settings)
    check(model, without=["ConvTranspose"], tolerance=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        one("ConvTranspose", X, (random(4, 1, 4, 4),), group=4, strides=[2, 2], pads=[1] * 4),
        one("ConvTranspose", X, (random(4, 3, 2, 2),), group=2, strides=[2, 2]),
        one("ConvTranspose", ROW, (random(4, 5, 3),), strides=[2]),
    ],
)
def test_transposed_convolutions_in_groups_and_of_one_dimension(model):
    check(model, without=["ConvTranspose"], tolerance=1e-4)


def test_a_transposed_convolution_of_computed_weights_stays():
    assert "ConvTranspose" in check(one("ConvTranspose", X, random(4, 5, 2, 2), strides=[2, 2]))


def test_a_concatenation_of_all_that_came_before_takes_the_last_one():
    model = Model()
    parts = [model.input(f"x{index}", random(1, 1, 2, 2, seed=index)) for index in range(4)]
    joined = [model.add("Concat", parts[:count], axis=1) for count in (2, 3, 4)]
    results = [model.add("Neg", [name]) for name in joined]
    check(model, *results)
    normal = normal_form(model.build(*results))
    assert [len(node.input) for node in normal.graph.node if node.op_type == "Concat"] == [2, 2, 2]


def test_a_long_concatenation_is_one_of_concatenations():
    model = Model()
    parts = [model.input(f"x{index}", np.full((1, 2), index, np.float32)) for index in range(20)]
    model.add("Concat", parts, axis=0)
    assert check(model).count("Concat") == 4

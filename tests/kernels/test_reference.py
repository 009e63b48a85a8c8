"""The numpy operators against torch and against numbers worked out by hand."""

import re

import numpy as np
import pytest
import torch

from sparrow.kernels.build import INCLUDE_DIR
from sparrow.kernels.formats import ConvWeights, WeightFormat
from sparrow.kernels.reference import F32, QA8, Conv2dOperator, conv2d


def test_fields_are_those_of_the_c_struct() -> None:
    text = (INCLUDE_DIR / "spw.h").read_text()
    body = re.sub(r"//.*", "", re.search(r"struct spw_conv2d \{(.*?)\};", text, re.DOTALL)[1])
    declarations = re.findall(r"(?:enum spw_conv2d_type|int32_t|float) ([^;]+);", body)
    fields = [name.strip() for names in declarations for name in names.split(",")]
    assert fields == list(Conv2dOperator.__dataclass_fields__)
    assert len(Conv2dOperator(QA8, 0, *[1] * 9).to_bytes()) == 4 * len(fields)


@pytest.mark.parametrize(
    ("groups", "stride", "dilation", "pad"), [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 2), (8, 2, 1, 0), (1, 3, 2, 0)]
)
def test_float_convolution_is_torchs(groups: int, stride: int, dilation: int, pad: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 8 // groups, 3, 3)).astype(np.float32)
    image, bias = rng.normal(size=(2, 8, 9, 11)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        *map(torch.from_numpy, (image, values, bias)), stride, pad, dilation, groups
    ).clamp(min=0)
    weights = ConvWeights(WeightFormat.F32, values, None, np.zeros(8, np.int32), np.ones(8, np.float32), bias, groups)
    operator = Conv2dOperator(
        F32, 0, 2, 8, 9, 11, 8, *expected.shape[2:], 3, 3, stride, stride, dilation, dilation, pad, pad, groups,
        float_min=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(conv2d(operator, weights, image), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_integers_by_hand() -> None:
    weights = ConvWeights(
        WeightFormat.QS8C,
        np.array([2, -3], np.int8).reshape(1, 2, 1, 1),
        None,
        np.array([-10 * (2 - 3)], np.int32),
        np.array([0.5], np.float32),
        np.array([0.25], np.float32),
    )
    operator = Conv2dOperator(
        QA8, 0, 1, 2, 1, 3, 1, 1, 3, 1, 1, input_zero_point=10, output_zero_point=-4, clamp_min=-4, clamp_max=100,
        residual_zero_point=1, residual_scale=0.25,
    )  # fmt: skip
    image = np.array([[15, 10, 127], [10, 10, -128]], np.int8).reshape(1, 2, 1, 3)
    residual = np.array([2, 0, 1], np.int8).reshape(1, 1, 1, 3)
    # 0.5 * (2 * 5) + 0.25 + 0.25 = 5.5 -> 6, half to even; 0.25 - 0.25 = 0; 0.5 * (234 + 414) = 324.25 -> clamped
    np.testing.assert_array_equal(conv2d(operator, weights, image, residual).ravel(), [2, -4, 100])

"""Bytes of packed layers, those included whose groups no kernel has a form for."""

import numpy as np
import pytest

from sparrow.kernels.formats import ConvWeights, WeightFormat, pack_weights, regroup
from sparrow.kernels.size_report import float_size, packed_size

RANDOM = np.random.default_rng(0)


def packed_bytes(format: WeightFormat, values: np.ndarray, table: np.ndarray | None) -> int:
    zeros, ones = np.zeros(len(values), np.float32), np.ones(len(values), np.float32)
    return len(pack_weights(ConvWeights(format, values, table, zeros.astype(np.int32), ones, zeros)))


def convolve(image: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """Outputs of a 1x1 convolution at one pixel."""
    parts = zip(image.reshape(groups, -1), values[..., 0, 0].reshape(groups, -1, values.shape[1]), strict=True)
    return np.concatenate([weights @ inputs for inputs, weights in parts])


@pytest.mark.parametrize(("groups", "kept"), [(1, True), (2, True), (4, False), (8, False)])
def test_groups_that_no_kernel_takes_become_one(groups, kept):
    values = RANDOM.integers(-9, 9, (16, 8 // groups, 1, 1)).astype(np.int8)
    written, left = regroup(values, groups)
    assert (left == groups and written is values) if kept else (left == 1 and written.shape == (16, 8, 1, 1))
    image = RANDOM.integers(-9, 9, 8)
    assert np.array_equal(convolve(image, written, left), convolve(image, values, groups))
    depthwise = RANDOM.integers(-9, 9, (8, 1, 3, 3)).astype(np.int8)
    assert regroup(depthwise, 8)[0] is depthwise


@pytest.mark.parametrize("zero", [True, False])
def test_their_bytes_are_those_of_the_dense_form(zero):
    table = np.array([-5, -3, 0 if zero else 1, 7], np.int8)
    values = RANDOM.integers(0, 4, (16, 2, 3, 3)).astype(np.uint8)
    found = packed_size(values, table, name="grouped", nominal_bits=2, groups=4)
    assert (found.weights, found.nominal_bits, found.bits) == (16 * 2 * 9, 2, 2 if zero else 8)
    assert found.zeros == int((table[values] == 0).sum())
    # Three of four blocks lie between the groups, and are left out; all of them are dearer.
    dense = regroup(values, 4, 2)[0] if zero else regroup(table[values], 4)[0]
    kind = WeightFormat.CB2T if zero else WeightFormat.QS8C
    assert found.total < packed_bytes(kind, dense, table if zero else None) and found.block_map > 0


def test_a_table_that_is_dense_is_not_listed():
    values = RANDOM.integers(1, 16, (8, 8, 3, 3)).astype(np.uint8)
    table = np.arange(-8, 8, dtype=np.int8)
    found = packed_size(values, table, name="dense", nominal_bits=4)
    assert found.block_map == 0 and found.total == packed_bytes(WeightFormat.CB4T, values, table)
    linear = packed_size(values[..., 0, 0], table, name="linear", nominal_bits=4)
    assert linear.total == packed_bytes(WeightFormat.CB4T, values[:, :, :1, :1], table)


def test_a_float_layer_counts_its_bias():
    weight = np.array([[0.0, 1.0], [2.0, 0.0]], np.float32)
    with_bias, without = (float_size(weight, name="linear", bias=bias) for bias in (True, False))
    assert (with_bias.total, without.total, with_bias.zeros) == (16 + 8, 16, 2)

"""Packed weights and activations: round trips, exact bytes, and what is refused."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.formats import (
    BlockPattern,
    ConvWeights,
    WeightFormat,
    pack_activation,
    pack_weights,
    row_taps,
    unpack_activation,
    unpack_weights,
)

from .kernel_cases import resigned


@st.composite
def conv_weights(draw: st.DrawFn) -> ConvWeights:
    format = draw(st.sampled_from(WeightFormat))
    kind = draw(st.sampled_from(["dense", "depthwise", "groups"]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    if kind == "dense":
        groups, out_channels, in_channels = 1, draw(st.integers(1, 20)), draw(st.integers(1, 9))
    elif kind == "depthwise":
        groups = out_channels = draw(st.integers(2, 11))
        in_channels = 1
    else:
        groups = draw(st.integers(2, 3))
        out_channels, in_channels = groups * 4 * draw(st.integers(1, 3)), 4 * draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (out_channels, in_channels, *kernel)
    codebook = None
    if format.has_codebook:
        entries = draw(st.integers(1, 2**format.bits))
        codebook = rng.integers(-127, 128, entries).astype(np.int8)
        codebook[draw(st.integers(0, entries - 1))] = 0
        values = rng.integers(0, entries, shape).astype(np.uint8)
    elif format is WeightFormat.QS8C:
        values = rng.integers(-127, 128, shape).astype(np.int8)
    else:
        values = rng.normal(size=shape).astype(format.dtype)
    constants = [rng.normal(size=out_channels).astype(np.float32) for _ in range(2)]
    initial = rng.integers(-(2**31), 2**31, out_channels).astype(np.int32)
    pattern = BlockPattern.DENSE
    if kind == "dense" and in_channels < 4 and draw(st.booleans()):
        pattern = BlockPattern.ROWS
    elif not format.is_float and kind != "depthwise" and draw(st.booleans()):
        pattern = BlockPattern.S4X4
        share = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
        blocks = rng.random((-(-out_channels // 4), -(-in_channels // 4), *kernel)) < share
        zero = np.repeat(np.repeat(blocks, 4, 0), 4, 1)[:out_channels, :in_channels]
        values[zero] = 0 if codebook is None else np.flatnonzero(codebook == 0)[0]
    return ConvWeights(format, values, codebook, initial, *constants, groups, pattern)


def assert_equal(left: ConvWeights, right: ConvWeights) -> None:
    for field in dataclasses.fields(ConvWeights):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        else:
            assert one == other, field.name


@given(conv_weights())
@settings(deadline=None, max_examples=150)
def test_weights_round_trip(weights: ConvWeights) -> None:
    data = pack_weights(weights)
    assert len(data) % 64 == 0
    assert_equal(unpack_weights(data), weights)


@given(conv_weights(), st.data())
@settings(deadline=None, max_examples=60)
def test_any_changed_byte_is_refused(weights: ConvWeights, data: st.DataObject) -> None:
    packed = bytearray(pack_weights(weights))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SparrowError):
        unpack_weights(bytes(packed))


def small_weights(format: WeightFormat = WeightFormat.CB4T, **changes: object) -> ConvWeights:
    codebook = np.array([-5, 0, 7], np.int8) if format.has_codebook else None
    values = np.array([2, 0]).astype(format.dtype).reshape(2, 1, 1, 1)
    constants = np.array([1, 2], np.int32), np.array([0.5, 0.25], np.float32), np.array([-1, 3], np.float32)
    return dataclasses.replace(ConvWeights(format, values, codebook, *constants), **changes)


def test_golden_bytes_of_a_codebook() -> None:
    data = pack_weights(small_weights())
    header = struct.unpack("<4sHBBIIHHIHHIIIIIIIII", data[:64])
    assert header[:-1] == (b"SPWK", 2, 1, 0, 2, 1, 1, 1, 1, 4, 3, 64, 128, 16, 192, 256, 320, 384, 0)
    assert header[-1] == zlib.crc32(data[:60] + data[64:])
    assert data[64:128] == bytes([0xFB, 0, 7]).ljust(64, b"\0")
    # Weight 0 is output 0, weight 4 output 1; everything else, the absent second block included, is a zero: index 1.
    assert data[128:144].hex() == "12111111" + "10111111" + "11111111" * 2
    assert data[192:208] == struct.pack("<4i", 1, 2, 0, 0)
    assert data[256:272] == struct.pack("<4f", 0.5, 0.25, 0, 0)
    assert data[320:336] == struct.pack("<4f", -1, 3, 0, 0)


def test_golden_bytes_of_two_bits() -> None:
    values = np.arange(3 * 16).reshape(4, 4, 1, 3).astype(np.uint8) % 3
    weights = ConvWeights(
        WeightFormat.CB2T, values, np.array([0, 1, 2], np.int8), np.zeros(4, np.int32), *np.zeros((2, 4), np.float32)
    )
    stored = np.frombuffer(pack_weights(weights), np.uint8)[128:144]
    blocks = values.transpose(3, 0, 1, 2).reshape(3, 16)  # [tap][output][input]
    np.testing.assert_array_equal(stored, blocks[0] | blocks[1] << 2 | blocks[2] << 4)


def test_order_by_rows() -> None:
    values = np.arange(1, 1 + 3 * 3 * 5).reshape(1, 3, 5, 3).astype(np.int8)  # 9 weights in each of 5 rows
    constants = np.zeros(1, np.int32), *np.zeros((2, 1), np.float32)
    data = pack_weights(ConvWeights(WeightFormat.QS8C, values, None, *constants, pattern=BlockPattern.ROWS))
    assert data[7] == 2
    stored = np.frombuffer(data, np.int8)[128 : 128 + 16 * row_taps(3, (5, 3))].reshape(-1, 4, 4)
    rows = values[0].transpose(1, 2, 0).reshape(5, 9)
    np.testing.assert_array_equal(stored[:10, 0], rows[:, :8].reshape(-1, 4))
    np.testing.assert_array_equal(stored[10:, 0], [rows[:4, 8], [rows[4, 8], 0, 0, 0]])
    assert not stored[:, 1:].any()


@pytest.mark.parametrize(
    ("channels", "kernel", "taps"), [(3, (7, 7), 37), (3, (3, 3), 7), (1, (3, 3), 3), (1, (5, 5), 7), (2, (1, 4), 2)]
)
def test_taps_by_rows(channels: int, kernel: tuple[int, int], taps: int) -> None:
    assert row_taps(channels, kernel) == taps


def test_order_of_int8_and_float() -> None:
    values = np.arange(-60, 60).reshape(12, 5, 1, 2).astype(np.int8)
    constants = np.zeros(12, np.int32), *np.zeros((2, 12), np.float32)
    stored = np.frombuffer(pack_weights(ConvWeights(WeightFormat.QS8C, values, None, *constants)), np.int8)[128:]
    taps = stored[:192].reshape(3, 2, 2, 4, 4)  # [panel][input pack][column][out][in]
    for out in range(12):
        np.testing.assert_array_equal(taps[out // 4, 0, :, out % 4], values[out, :4, 0].T)
        np.testing.assert_array_equal(taps[out // 4, 1, :, out % 4, 1:], 0)
    weights = ConvWeights(WeightFormat.F32, values.astype(np.float32), None, *constants)
    stored = np.frombuffer(pack_weights(weights), np.float32)[32:].reshape(-1, 4, 4)
    np.testing.assert_array_equal(stored[0], values[:4, :4, 0, 0].T)
    np.testing.assert_array_equal(stored[1], values[4:8, :4, 0, 0].T)  # panels of float have 8 output channels
    np.testing.assert_array_equal(stored[2], values[:4, :4, 0, 1].T)
    half = ConvWeights(WeightFormat.F16, values.astype(np.float16), None, *constants)
    stored = np.frombuffer(pack_weights(half), np.float16)[64:].reshape(-1, 4, 8)
    np.testing.assert_array_equal(stored[0], values[:8, :4, 0, 0].T)  # of an input channel, all 8 lie together
    np.testing.assert_array_equal(stored[1], values[:8, :4, 0, 1].T)


def test_golden_bytes_of_sparse_blocks() -> None:
    values = np.zeros((8, 4, 1, 600), np.int8)
    for out, column in ((0, 3), (1, 5), (2, 261), (7, 599)):
        values[out, 1, 0, column] = column % 100 + 1
    constants = np.zeros(8, np.int32), *np.zeros((2, 8), np.float32)
    weights = ConvWeights(WeightFormat.QS8C, values, None, *constants, pattern=BlockPattern.S4X4)
    data = pack_weights(weights)
    header = struct.unpack("<4sHBBIIHHIHHIIIIIIIII", data[:64])
    values_offset, values_bytes, lists = header[12], header[13], header[18]
    # 256 steps and more go by way of a block of zeros.
    assert struct.unpack_from("<3I", data, lists) == (0, 4, 7)
    assert list(data[lists + 12 : lists + 19]) == [3, 2, 255, 1, 255, 255, 89]
    blocks = np.frombuffer(data, np.int8, values_bytes, values_offset).reshape(7, 4, 4)
    assert [(int(block.argmax()), int(block.max())) for block in blocks] == [
        (1, 4), (5, 6), (0, 0), (9, 62), (0, 0), (0, 0), (13, 100)
    ]  # fmt: skip
    assert_equal(unpack_weights(data), weights)


def test_a_codebook_without_zero_pads_with_its_free_entry_or_is_refused() -> None:
    full = small_weights(codebook=np.arange(1, 17).astype(np.int8))
    with pytest.raises(SparrowError, match="no zero"):
        pack_weights(full)
    nearly = small_weights(codebook=np.arange(1, 16).astype(np.int8))
    data = pack_weights(nearly)
    assert data[129] == 0xFF
    assert data[64 + 15] == 0
    assert_equal(unpack_weights(data), nearly)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((2, 1, 1, 1), np.float32)}, "float32"),
        ({"values": np.zeros((2, 1), np.uint8)}, "shape"),
        ({"values": np.zeros((0, 1, 1, 1), np.uint8)}, "no dimension of zero"),
        ({"values": np.full((2, 1, 1, 1), 3, np.uint8)}, "codebook index 3"),
        ({"codebook": None}, "without a codebook"),
        ({"codebook": np.zeros(17, np.int8)}, "17 entries"),
        ({"codebook": np.array([-128, 0, 7], np.int8)}, "-128"),
        ({"initial": np.zeros(3, np.int32)}, "3 entries"),
        ({"scale": np.array([1, np.nan], np.float32)}, "NaN"),
        ({"bias": np.array([1, np.inf], np.float32)}, "infinity"),
        ({"groups": 3}, "3 groups"),
        ({"groups": 2, "pattern": BlockPattern.S4X4}, "depthwise weights with the pattern s4x4"),
        ({"groups": 2, "pattern": BlockPattern.ROWS}, "2 input channels in 2 groups with the pattern rows"),
        ({"format": WeightFormat.QS8C, "codebook": np.zeros(4, np.int8)}, "expected: none"),
    ],
)
def test_bad_weights_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SparrowError) as error:
        small_weights(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (0, b"ELF!", "begin with b'ELF!'"),
        (4, b"\x01\0", "version 1"),
        (6, b"\x09", "format 9"),
        (7, b"\x05", "pattern 5"),
        (8, struct.pack("<I", 4000), "values section"),
        (56, struct.pack("<I", 64), "list of blocks"),
        (12, struct.pack("<I", 0), "0 channels"),
        (20, struct.pack("<I", 0), "0 groups"),
        (32, struct.pack("<I", 100), "values section at byte 100"),
        (36, struct.pack("<I", 4), "values section of 4 bytes"),
        (48, struct.pack("<I", 1 << 30), "bias section"),
        (52, struct.pack("<I", 99), "99 bytes"),
    ],
)
def test_each_corruption_is_named(offset: int, field: bytes, message: str) -> None:
    with pytest.raises(SparrowError) as error:
        unpack_weights(resigned(pack_weights(small_weights()), offset, field))
    assert message in str(error.value)
    assert error.value.next_step


def test_truncation_is_named() -> None:
    data = pack_weights(small_weights())
    for size in (0, 63, 64, len(data) - 1):
        with pytest.raises(SparrowError, match=f"{size} bytes"):
            unpack_weights(data[:size])


@given(st.tuples(*[st.integers(1, 5)] * 2), st.integers(1, 9), st.sampled_from([np.int8, np.float32]))
def test_activations_round_trip(image: tuple[int, int], channels: int, dtype: type) -> None:
    planar = np.arange(2 * channels * image[0] * image[1]).reshape(2, channels, *image).astype(dtype)
    packed = pack_activation(planar, 9)
    assert packed.shape == (2, -(-channels // 4), *image, 4)
    assert packed.dtype == dtype
    np.testing.assert_array_equal(packed[1, 0, :, :, 0], planar[1, 0])
    assert (packed[:, -1, :, :, (channels - 1) % 4 + 1 :] == 9).all()
    np.testing.assert_array_equal(unpack_activation(packed, channels), planar)

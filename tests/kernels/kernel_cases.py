"""Random operators over shape classes, written as the case file that check_kernels.c reads."""

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparrow.kernels.formats import BlockPattern, ConvWeights, WeightFormat, pack_activation, pack_weights
from sparrow.kernels.reference import F16, F32, QA8, Conv2dOperator, conv2d

# Of float outputs, for the root of the number of summands and relative to 1 + |expected|. Winograd's transforms cost
# half a decimal place over the rounding of each sum, which is to 2^-24 or 2^-11.
TOLERANCES = {WeightFormat.F32: 5e-6, WeightFormat.F16: 3e-2}
INTEGER_FORMATS = (WeightFormat.QS8C, WeightFormat.CB4T, WeightFormat.CB2T)


@dataclass(frozen=True)
class Shape:
    """Geometry of a case; pad is top, left, bottom, right."""

    channels: tuple[int, int]
    image: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    batch: int = 1


def dense_shapes() -> list[Shape]:
    """Equal, less, greater and remainder of each tile dimension, and every way to read the input."""
    shapes = [
        Shape((inputs, outputs), (3, 8), (3, 3), pad=(1, 1, 1, 1))
        for inputs, outputs in itertools.product((1, 3, 4, 5, 8, 17), (1, 4, 5, 8, 16, 17))
    ]
    shapes += [Shape((8, 12), (2, width), (3, 3), pad=(1, 1, 1, 1)) for width in (1, 2, 3, 4, 5, 7, 9, 16, 33)]
    shapes += [
        Shape((5, 9), (7, width), (size, size), (stride, stride), pad=(size // 2,) * 4)
        for width, size, stride in itertools.product((4, 7, 8, 16), (1, 3, 5), (1, 2))
    ]
    shapes += [Shape((inputs, outputs), (1, 1)) for inputs, outputs in itertools.product((1, 4, 13, 36), (1, 4, 8, 21))]
    shapes += [Shape((12, 20), (1, width)) for width in (2, 3, 4, 5, 7, 8, 13, 64)]
    shapes += [
        Shape((8, 8), (9, 9), (3, 3), dilation=(2, 2), pad=(2, 2, 2, 2)),
        Shape((8, 8), (9, 12), (3, 3), (2, 2), (2, 2), pad=(2, 2, 2, 2)),
        Shape((8, 8), (9, 12), (3, 3), (3, 3), (1, 1), pad=(1, 1, 1, 1)),
        Shape((8, 8), (8, 8), (3, 3), (2, 2), pad=(0, 0, 1, 1)),
        Shape((8, 8), (8, 8), (3, 3), (1, 1), pad=(2, 0, 1, 3)),
        Shape((8, 8), (8, 9), (2, 3), (1, 1)),
        Shape((8, 8), (9, 9), (3, 1), (2, 1), pad=(1, 0, 1, 0)),
        Shape((8, 8), (9, 9), (1, 3), (2, 1)),
        Shape((8, 8), (9, 9), (1, 1), (2, 1)),
        Shape((8, 8), (9, 9), (1, 5), (1, 2), pad=(0, 2, 0, 2)),
        Shape((8, 8), (5, 5), (5, 5)),
        Shape((3, 8), (4, 4), (7, 7), (2, 2), pad=(3, 3, 3, 3)),
        Shape((4, 4), (2, 2), (1, 1), pad=(1, 1, 1, 1)),
        Shape((8, 8), (4, 6), (3, 3), pad=(1, 1, 1, 1), batch=3),
        Shape((8, 8), (1, 1), batch=3),
        Shape((16, 24), (5, 6), (3, 3), pad=(1, 1, 1, 1), groups=2),
        Shape((16, 16), (4, 4), (1, 1), groups=4),
        Shape((64, 8), (40, 40), (3, 3), pad=(1, 1, 1, 1)),  # more than one band
        Shape((64, 8), (40, 40)),
        Shape((132, 8), (5, 6), (3, 3), pad=(1, 1, 1, 1)),  # more taps than the flat copy is made for
    ]
    return shapes


def row_shapes() -> list[Shape]:
    """Windows of fewer than 4 channels: what their rows leave, strides, borders, bands, images smaller than a quad."""
    shapes = [
        Shape((channels, 12), (9, 11), (size, size), (stride, stride), pad=(size // 2,) * 4)
        for channels, size, stride in itertools.product((1, 2, 3), (1, 3, 5, 7), (1, 2))
    ]
    return [
        *shapes,
        Shape((3, 64), (32, 40), (7, 7), (2, 2), pad=(3, 3, 3, 3)),  # more than one band
        Shape((3, 13), (6, 33), (3, 3), (2, 2), pad=(0, 0, 1, 1), batch=2),
        Shape((3, 8), (3, 3), (3, 3)),
        Shape((2, 8), (5, 6), (2, 4), (1, 3), pad=(6, 5, 4, 7)),
        Shape((3, 5), (9, 14), (4, 4), (4, 4)),
        Shape((1, 8), (11, 11), (2, 3), (5, 4)),  # strides that leave pixels out
        Shape((1, 8), (1, 64), (1, 10), (1, 5)),
        Shape((3, 4), (12, 5), (9, 1), pad=(1, 0, 0, 0)),
    ]


def pair_shapes() -> list[Shape]:
    """Channels enough for pairs of packs: tiles of 12 pixels x 8 channels, each way to copy the input, odd packs."""
    shapes = [Shape((inputs, outputs), (1, 13)) for inputs, outputs in itertools.product((45, 48, 52), (29, 32, 45))]
    shapes += [Shape((52, 36), (height, width)) for height, width in ((1, 1), (1, 3), (5, 5), (3, 8), (7, 7), (2, 37))]
    shapes += [Shape((20, 16), (3, width), (3, 3), pad=(1, 1, 1, 1)) for width in (1, 4, 12, 35, 36, 41, 50)]
    shapes += [
        Shape((52, 32), (9, width), (size, size), (stride, stride), pad=(size // 2,) * 4)
        for width, size, stride in itertools.product((8, 91), (1, 3), (2, 3))
    ]
    return [
        *shapes,
        *(Shape((inputs, 13), (3, 5), (3, 3), pad=(1, 1, 1, 1)) for inputs in (5, 8, 12)),
        Shape((8, 16), (9, 13), (3, 3), (2, 2), (2, 2), pad=(2, 2, 2, 2)),
        Shape((8, 16), (5, 60), (2, 3), dilation=(1, 5), pad=(0, 7, 3, 9)),
        Shape((48, 32), (3, 40), (1, 1), pad=(1, 2, 0, 3)),
        Shape((24, 40), (5, 6), (3, 3), pad=(1, 1, 1, 1), groups=2, batch=2),
        Shape((96, 64), (4, 5), groups=2, batch=2),
        Shape((64, 32), (70, 50)),  # more than one band
        Shape((132, 16), (20, 20), (3, 3), pad=(1, 1, 1, 1)),
        Shape((64, 16), (36, 48), (3, 3), pad=(1, 1, 1, 1)),
    ]


def winograd_shapes() -> list[Shape]:
    """3x3 windows at stride 1 on enough channels: remainders of tiles, panels and blocks of input channels."""
    shapes = [
        Shape(channels, image, (3, 3), pad=(1, 1, 1, 1))
        for channels, image in itertools.product(((16, 16), (18, 21), (65, 28)), ((7, 7), (8, 8), (9, 14), (13, 5)))
    ]
    return [
        *shapes,
        Shape((20, 32), (8, 8), (3, 3), pad=(1, 1, 1, 1)),  # 4 tiles: two panels of halves at a time
        Shape((16, 16), (10, 10), (3, 3)),
        Shape((16, 16), (9, 11), (3, 3), pad=(2, 0, 1, 3)),
        Shape((16, 24), (8, 12), (3, 3), pad=(1, 1, 1, 1), batch=2),
        Shape((64, 16), (28, 28), (3, 3), pad=(1, 1, 1, 1)),  # more than one band
        Shape((132, 4), (28, 28), (3, 3), pad=(1, 1, 1, 1)),  # of integers too
    ]


def depthwise_shapes() -> list[Shape]:
    """Windows, strides and channel remainders of depthwise convolutions."""
    shapes = [
        Shape((channels, channels), (6, width), (size, size), (stride, stride), pad=(size // 2,) * 4, groups=channels)
        for channels, width, size, stride in itertools.product((3, 8), (2, 4, 7, 13), (3, 5), (1, 2))
    ]
    return [
        *shapes,
        Shape((17, 17), (7, 9), (3, 3), pad=(1, 1, 1, 1), groups=17, batch=2),
        Shape((8, 8), (7, 9), (3, 3), dilation=(2, 2), pad=(2, 2, 2, 2), groups=8),
        Shape((8, 8), (7, 9), (2, 4), groups=8),
        Shape((5, 5), (1, 1), (1, 1), groups=5),
        Shape((4, 4), (80, 80), (3, 3), (1, 1), pad=(1, 1, 1, 1), groups=4),
        *depthwise_row_shapes(),
    ]


def depthwise_row_shapes() -> list[Shape]:
    """What the kernels by rows tell apart: rows and columns of a tile, borders of any width, bands, shares of packs."""
    windows = [((size, size), (stride, stride)) for size, stride in itertools.product((3, 5), (1, 2))]
    shapes = [
        Shape((8, 8), (height, 9), *window, pad=(window[0][0] // 2,) * 4, groups=8)
        for window, height in itertools.product(windows, (1, 2, 3, 4, 5, 7))
    ]
    for window in windows:
        shapes += [
            Shape((12, 12), (1, 1), *window, pad=(2, 2, 2, 2), groups=12),
            Shape((8, 8), (9, 11), *window, groups=8),
            Shape((8, 8), (8, 8), *window, pad=(0, 0, 1, 1), groups=8),
            Shape((8, 8), (6, 8), *window, pad=(0, 3, 1, 0), groups=8),
            Shape((4, 4), (2, 3), *window, pad=(6, 7, 5, 8), groups=4),
            Shape((4, 4), (50, 130), *window, pad=(1, 1, 1, 1), groups=4),
            Shape((40, 40), (7, 7), *window, pad=(1, 1, 1, 1), groups=40, batch=2),
        ]
    return shapes


def make_operator(shape: Shape, type: int, *, float_output: bool, rng: np.random.Generator) -> Conv2dOperator:
    """Add random zero points and clamps to a geometry."""
    sizes = []
    for axis in (0, 1):
        span = (shape.kernel[axis] - 1) * shape.dilation[axis] + 1
        sizes.append((shape.image[axis] + shape.pad[axis] + shape.pad[axis + 2] - span) // shape.stride[axis] + 1)
    low, high = sorted(rng.integers(-128, 128, 2).tolist())
    return Conv2dOperator(
        type, int(float_output), shape.batch, shape.channels[0], *shape.image, shape.channels[1], *sizes, *shape.kernel,
        *shape.stride, *shape.dilation, *shape.pad[:2], shape.groups,
        input_zero_point=0 if type != QA8 else int(rng.integers(-128, 128)),
        output_zero_point=int(rng.integers(-128, 128)),
        clamp_min=low, clamp_max=high, residual_zero_point=int(rng.integers(-128, 128)),
        residual_scale=1.0 if type != QA8 else float(np.float32(rng.uniform(0.1, 2))),
        float_min=float(rng.choice([-np.inf, 0.0])), float_max=float(rng.choice([np.inf, 6.0])),
    )  # fmt: skip


def make_weights(
    operator: Conv2dOperator,
    format: WeightFormat,
    rng: np.random.Generator,
    zero_blocks: float | None = None,
    *,
    by_rows: bool = False,
) -> ConvWeights:
    """Random weights, with the extremes of int8 among them, scaled so that outputs cover and overflow their range.

    A share of the blocks is zero, and such blocks are left out, unless the share is None.
    """
    window = operator.kernel_height, operator.kernel_width
    shape = (operator.out_channels, operator.in_channels // operator.groups, *window)
    codebook = None
    if format.is_float:
        values, scale = rng.normal(size=shape).astype(format.dtype), np.zeros(shape[0], np.float32)
        decoded = values
    else:
        if format.has_codebook:
            codebook = rng.integers(-127, 128, 2**format.bits).astype(np.int8)
            codebook[1] = 0
            values = rng.integers(0, len(codebook), shape).astype(np.uint8)
        else:
            values = rng.choice([-127, 127], shape).astype(np.int8)
            ordinary = rng.random(shape) < rng.choice([0.0, 0.9])
            values[ordinary] = rng.integers(-127, 128, int(ordinary.sum()))
        if zero_blocks is not None:
            packs = (-(-shape[0] // 4), -(-shape[1] // 4))
            zero = np.repeat(np.repeat(rng.random((*packs, *window)) < zero_blocks, 4, 0), 4, 1)
            values[zero[: shape[0], : shape[1]]] = 0 if codebook is None else 1
        decoded = values if codebook is None else codebook[values]
        spread = 60.0 if not operator.float_output else 1.0
        scale = rng.uniform(0.2, 2, shape[0]) * spread / (6000 * np.sqrt(decoded[0].size))
        scale[rng.random(shape[0]) < 0.05] = 1e30  # saturates
    sums = decoded.reshape(shape[0], -1).sum(axis=1, dtype=None if format.is_float else np.int64)
    initial = np.zeros(shape[0]) if format.is_float else -operator.input_zero_point * sums
    return ConvWeights(
        format, values, codebook, initial.astype(np.int32), scale.astype(np.float32),
        rng.normal(size=shape[0]).astype(np.float32), operator.groups,
        BlockPattern.ROWS if by_rows else BlockPattern.DENSE if zero_blocks is None else BlockPattern.S4X4,
    )  # fmt: skip


def cases(seed: int) -> Iterator[tuple[str, Conv2dOperator, ConvWeights, bool]]:
    """Name, operator, weights and whether there is a residual."""
    rng = np.random.default_rng(seed)
    by_winograd = winograd_shapes()
    by_rows = row_shapes()
    in_pairs = pair_shapes()
    shapes = [*dense_shapes(), *in_pairs, *by_winograd, *depthwise_shapes(), *by_rows]
    types = {WeightFormat.F32: F32, WeightFormat.F16: F16}
    for index, shape in enumerate(shapes):
        formats = {INTEGER_FORMATS[index % 3], INTEGER_FORMATS[(index + 1) % 3]} if index % 2 else {WeightFormat.QS8C}
        floats = [] if shape in in_pairs else [WeightFormat.F32, WeightFormat.F16]
        for format in [*sorted(formats), *floats]:
            integer = not format.is_float
            float_output = integer and rng.random() < 0.25
            residual = rng.random() < 0.4
            operator = make_operator(shape, types.get(format, QA8), float_output=float_output, rng=rng)
            operator = replace(operator, winograd=int(integer and (shape in by_winograd or rng.random() < 0.5)))
            name = f"{format.value} {shape.channels} {shape.image} {shape.kernel} {shape.stride} {shape.pad}"
            yield f"{name} g{shape.groups}"[:95], operator, make_weights(operator, format, rng), residual
            if shape in by_rows:
                yield f"rows {name}"[:95], operator, make_weights(operator, format, rng, by_rows=True), residual
            if integer and shape.groups < max(2, shape.channels[0]):
                share = 0.0 if shape.channels[0] > 128 else (0.0, 0.5, 0.75, 0.95, 1.0)[index % 5]
                yield f"sparse {share} {name}"[:95], operator, make_weights(operator, format, rng, share), residual


def resigned(data: bytes, offset: int, field: bytes) -> bytes:
    """Change header bytes and make the checksum fit, as someone hostile would."""
    changed = data[:offset] + field + data[offset + len(field) :]
    return changed[:60] + struct.pack("<I", zlib.crc32(changed[:60] + changed[64:])) + changed[64:]


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 64) * 64, b"\0")


def write_cases(path: Path, seed: int = 0) -> int:
    """Write the case file and return how many cases it has."""
    rng = np.random.default_rng(seed + 1)
    parts = []
    for name, operator, weights, has_residual in cases(seed):
        is_float = operator.type != QA8
        in_shape = (operator.batch, operator.in_channels, operator.in_height, operator.in_width)
        out_shape = (operator.batch, operator.out_channels, operator.out_height, operator.out_width)
        draw = (lambda shape, dtype=weights.format.dtype: rng.normal(size=shape).astype(dtype)) if is_float else (
            lambda shape: rng.integers(-128, 128, shape).astype(np.int8))  # fmt: skip
        activation, residual = draw(in_shape), draw(out_shape) if has_residual else None
        expected = conv2d(operator, weights, activation, residual)
        # What lies in the input's padding channels must not matter; the output's are the value of a zero sum.
        junk = 3.5 if is_float else 77
        rest = 0.0 if is_float else operator.residual_zero_point
        zero = float(operator.clamp(np.zeros(1, np.float32))[0])
        if not is_float and not operator.float_output:
            zero = float(np.clip(operator.output_zero_point, operator.clamp_min, operator.clamp_max))
        arrays = [
            pack_weights(weights),
            pack_activation(activation, junk).tobytes(),
            b"" if residual is None else pack_activation(residual, rest).tobytes(),
            pack_activation(expected, zero).tobytes(),
        ]
        tolerance = TOLERANCES.get(weights.format, 0.0) * weights.values[0].size ** 0.5 or 1e-6
        header = name.encode().ljust(96, b"\0") + operator.to_bytes() + struct.pack("<f", tolerance)
        parts.append(_padded(header + struct.pack("<4I", *map(len, arrays))) + b"".join(map(_padded, arrays)))
    path.write_bytes(_padded(struct.pack("<I", len(parts))) + b"".join(parts))
    return len(parts)

"""How weights and activations lie in memory: the one place where they are packed and unpacked.

Packed weights are a header of 64 bytes (``struct spw_weights_header`` in ``csrc/formats.h``) and sections, each
aligned to 64 bytes: the codebook, the values, and for each output channel ``initial``, ``scale`` and ``bias``. The
layout is neutral to the instruction set; a kernel reads int8 values in place and expands codebook indices panel by
panel.

Values are a stream of blocks of 16 weights. A panel of 4 output channels is a list of taps, and a tap is one pack of 4
input channels at one place of the window::

    [group][output pack][input pack][window row][window column][block of 16]

    block int8, codebook   [4 output channels][4 input channels]
    block float32, float16 [4 input channels][4 output channels]

Floating-point panels have 8 output channels (a last one of 4 where they run out), whose blocks of a tap lie together:
one after the other in float32, input channel by input channel in float16.
Depthwise values are a panel for each 4 channels, ``[channel pack][window row][window column][4 channels]``; those of
integers are padded as a stream of blocks is.

With the pattern ``s4x4`` the stream leaves out blocks of zeros. A section says which are there: for each panel, and
once more at the end, the number of its first block (uint32), then for each block a step (uint8). A panel's first step
is its first tap's number, each other one is what to add to the number of the tap before it, at least 1; where 255 does
not reach, a block of zeros is kept in between.

With the pattern ``rows``, for fewer than 4 input channels, a tap is 4 neighbours among the ``columns * channels``
weights of a row of the window, the channels of each column together; whole fours come first, row by row. Each weight
that a row has left is the beginning of a tap for every 4 rows, which holds the weights at its place in these rows::

    [output pack][window row][four of the row][block of 16]
    [output pack][weight left][4 window rows][block of 16]

Two blocks share 16 bytes of 4-bit indices, four blocks share 16 bytes of 2-bit indices, and the stream is padded with
zeros to whole groups of them::

    qs8c   byte i:  w[i]
    cb4t   byte i:  bits 0-3 index of w[i], bits 4-7 index of w[16 + i]
    cb2t   byte i:  bits 0-1 w[i], bits 2-3 w[16 + i], bits 4-5 w[32 + i], bits 6-7 w[48 + i]

so that ``and``, ``shift`` and a table look-up turn 16 bytes into whole blocks in order, with nothing to interleave.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.errors import SparrowError

CHANNEL_PACK = 4
F32_PANEL_CHANNELS = 8
BLOCK = 16
ALIGNMENT = 64
CODEBOOK_ENTRIES = 16
MAGIC = b"SPWK"
VERSION = 2
LARGEST_STEP = 255
_HEADER = struct.Struct("<4sHBBIIHHIHHIIIIIIIII")


class WeightFormat(str, Enum):
    """What a stored weight is; the value is its token in kernel names."""

    QS8C = "qs8c"  # int8, symmetric, one scale for each output channel
    CB4T = "cb4t"  # 4-bit index into one int8 codebook for the tensor
    CB2T = "cb2t"  # 2-bit index into one int8 codebook for the tensor
    F32 = "f32"
    F16 = "f16"  # IEEE half precision

    @property
    def bits(self) -> int:
        """Bits of one stored weight."""
        return {"qs8c": 8, "cb4t": 4, "cb2t": 2, "f32": 32, "f16": 16}[self.value]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of ``ConvWeights.values``."""
        integers = {"qs8c": np.int8, "cb4t": np.uint8, "cb2t": np.uint8}
        return np.dtype(integers.get(self.value) or {"f32": np.float32, "f16": np.float16}[self.value])

    @property
    def has_codebook(self) -> bool:
        """Whether stored weights are indices."""
        return self in (WeightFormat.CB4T, WeightFormat.CB2T)

    @property
    def is_float(self) -> bool:
        """Whether stored weights are floating-point numbers."""
        return self in (WeightFormat.F32, WeightFormat.F16)


class BlockPattern(str, Enum):
    """Which blocks of 4 output x 4 input channels are stored; the value is its token in descriptions."""

    DENSE = "dense"  # all
    S4X4 = "s4x4"  # those with a weight that is not zero
    ROWS = "rows"  # all, of fewer than 4 input channels, made of rows of the window


_PATTERN_CODES = [BlockPattern.DENSE, BlockPattern.S4X4, BlockPattern.ROWS]
_FORMAT_CODES = [WeightFormat.QS8C, WeightFormat.CB4T, WeightFormat.CB2T, WeightFormat.F32, WeightFormat.F16]


@dataclass(frozen=True, eq=False)
class ConvWeights:
    """Weights and per-channel constants of a convolution, depthwise convolution or linear layer.

    Attributes:
        format: How the values are stored.
        values: [O, I / groups, kernel height, kernel width]; int8 within [-127, 127] (qs8c), uint8 codebook indices,
            float32 or float16.
        codebook: int8 within [-127, 127], at most 16 entries (cb4t) or 4 (cb2t); None for the other formats.
        initial: int32 [O], value of each accumulator before the first product: minus the input's zero point times the
            sum of the channel's weights. Not read for f32.
        scale: float32 [O], accumulator to output units. Not read for f32.
        bias: float32 [O], in output units.
        groups: 1, the number of channels (depthwise), or a divisor that leaves multiples of 4 in both channel counts.
        pattern: Which blocks are stored; sparse weights are integers and not depthwise, weights by rows have one group
            of fewer than 4 input channels.
    """

    format: WeightFormat
    values: NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float16]
    codebook: NDArray[np.int8] | None
    initial: NDArray[np.int32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    groups: int = 1
    pattern: BlockPattern = BlockPattern.DENSE

    def __post_init__(self) -> None:
        _check_array("weight values", self.values, self.format.dtype, 4)
        if 0 in self.values.shape:
            raise SparrowError(f"weights of shape {self.values.shape}", expected="no dimension of zero")
        for name in ("initial", "scale", "bias"):
            dtype = np.dtype(np.int32 if name == "initial" else np.float32)
            _check_array(name, getattr(self, name), dtype, 1)
            if len(getattr(self, name)) != self.out_channels:
                raise SparrowError(
                    f"{name} has {len(getattr(self, name))} entries",
                    expected=f"one for each of the {self.out_channels} output channels",
                )
        self._check_groups()
        self._check_codebook()
        if self.pattern is BlockPattern.ROWS and (self.groups > 1 or self.in_channels >= CHANNEL_PACK):
            raise SparrowError(
                f"{self.in_channels} input channels in {self.groups} groups with the pattern {self.pattern.value}",
                expected="one group of fewer than 4 input channels",
            )
        if self.pattern is BlockPattern.S4X4 and (self.format.is_float or self.is_depthwise):
            kind = "depthwise" if self.is_depthwise else self.format.value
            raise SparrowError(f"{kind} weights with the pattern {self.pattern.value}", expected="the dense pattern")
        for name, array in (("weights", self.values), ("codebook", self.codebook)):
            if array is not None and array.dtype == np.int8 and array.min(initial=0) < -127:
                raise SparrowError(
                    f"-128 among the int8 {name}",
                    expected="values within [-127, 127]: two products have to fit 16 bits",
                    next_step="quantize weights symmetrically",
                )
        for name in ("values", "scale", "bias"):
            if not np.isfinite(getattr(self, name)).all():
                raise SparrowError(f"NaN or infinity among the {name}", expected="finite numbers")

    def _check_groups(self) -> None:
        out_channels, in_channels = self.values.shape[:2]
        if self.groups == 1 or self.is_depthwise:
            return
        if self.groups < 1 or out_channels % (4 * self.groups) or in_channels % 4:
            raise SparrowError(
                f"{self.groups} groups of {in_channels} input channels for {out_channels} output channels",
                expected="1 group, one for each channel (depthwise), or multiples of 4 channels in each group",
                next_step="let the compiler pad or split this convolution",
            )

    def _check_codebook(self) -> None:
        if not self.format.has_codebook:
            if self.codebook is not None:
                raise SparrowError(f"a codebook with format {self.format.value}", expected="none")
            return
        limit = 2**self.format.bits
        if self.codebook is None:
            raise SparrowError(f"format {self.format.value} without a codebook", expected=f"1 to {limit} int8 entries")
        _check_array("codebook", self.codebook, np.dtype(np.int8), 1)
        if not 1 <= len(self.codebook) <= limit:
            raise SparrowError(f"a codebook of {len(self.codebook)} entries", expected=f"1 to {limit}")
        if self.values.max() >= len(self.codebook):
            raise SparrowError(
                f"codebook index {self.values.max()}", expected=f"less than the codebook's {len(self.codebook)} entries"
            )

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return int(self.values.shape[0])

    @property
    def in_channels(self) -> int:
        """Number of input channels of all groups."""
        return int(self.values.shape[1]) * self.groups

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the window."""
        return int(self.values.shape[2]), int(self.values.shape[3])

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has its own window."""
        return _is_depthwise(self.values.shape, self.groups)

    def decoded(self) -> NDArray[Any]:
        """Weights with indices replaced by what the codebook holds: int8, or the format's own type for floats."""
        return self.values if self.codebook is None else self.codebook[self.values]

    def stored_blocks(self) -> NDArray[np.bool_]:
        """Blocks that are not zero: [panel][tap], panels of 4 output channels. Not for depthwise weights."""
        blocks = np.asarray(_blocks(self.decoded(), self.groups, 0).any(axis=-1))
        return blocks.reshape(-1, blocks.shape[2])


def regroup(values: NDArray[Any], groups: int, zero: int = 0) -> tuple[NDArray[Any], int]:
    """Write a grouped convolution that no kernel takes as a dense one, with zeros between the groups.

    Args:
        values: [O, I / groups, kernel height, kernel width].
        groups: Number of groups.
        zero: What stands for zero: the number 0, or its index in a codebook.

    Returns:
        Values and groups as ``ConvWeights`` takes them: the same, or [O, I, kernel height, kernel width] and 1.
    """
    outputs, inputs = len(values) // groups, values.shape[1]
    packable = outputs % CHANNEL_PACK == 0 and inputs % CHANNEL_PACK == 0
    if groups == 1 or packable or _is_depthwise(values.shape, groups):
        return values, groups
    dense = np.full((len(values), inputs * groups, *values.shape[2:]), zero, values.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = values[rows]
    return dense, 1


def _check_array(name: str, array: object, dtype: np.dtype[np.generic], rank: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != rank:
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise SparrowError(f"{name} are {got}", expected=f"a {dtype} array with {rank} dimension{'s' * (rank > 1)}")


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _align(offset: int) -> int:
    return _ceil_div(offset, ALIGNMENT) * ALIGNMENT


def _block_count(shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    """Output packs of dense values [O, I / groups, kernel height, kernel width], and blocks of each."""
    out_channels, in_channels, height, width = shape
    packs = groups * _ceil_div(out_channels // groups, CHANNEL_PACK)
    return packs, _ceil_div(in_channels, CHANNEL_PACK) * height * width


def row_taps(channels: int, kernel: tuple[int, int]) -> int:
    """Taps of a window with the pattern ``rows``; otherwise a window of few channels has one for each of its pixels.

    Args:
        channels: Input channels, fewer than 4.
        kernel: Height and width.
    """
    whole, rest = divmod(kernel[1] * channels, CHANNEL_PACK)
    return kernel[0] * whole + rest * _ceil_div(kernel[0], CHANNEL_PACK)


def _row_places(channels: int, height: int, width: int) -> NDArray[np.intp]:
    """Places of the weights of a tap with the pattern ``rows``, [tap][4], among [row][column][channel]; -1 for none."""
    row = width * channels
    places = np.arange(height * row).reshape(height, row)
    whole = row // CHANNEL_PACK * CHANNEL_PACK
    below = np.full((_ceil_div(height, CHANNEL_PACK) * CHANNEL_PACK, row - whole), -1)
    below[:height] = places[:, whole:]
    return np.concatenate([places[:, :whole].reshape(-1, CHANNEL_PACK), below.T.reshape(-1, CHANNEL_PACK)])


def _by_rows(values: NDArray[Any], fill: int) -> NDArray[Any]:
    """Write values of the pattern ``rows`` as those of a 1x1 window whose channels are the taps."""
    places = _row_places(*values.shape[1:])
    padded = np.full((len(values), values[0].size + 1), fill, values.dtype)
    padded[:, :-1] = values.transpose(0, 2, 3, 1).reshape(len(values), -1)
    return padded[:, places.reshape(-1), np.newaxis, np.newaxis]


def _from_rows(values: NDArray[Any], shape: tuple[int, int, int, int]) -> NDArray[Any]:
    """Invert ``_by_rows``."""
    out_channels, channels, height, width = shape
    places = _row_places(channels, height, width).reshape(-1)
    ordered = np.empty((out_channels, height * width * channels), values.dtype)
    ordered[:, places[places >= 0]] = values[:, places >= 0, 0, 0]
    return ordered.reshape(out_channels, height, width, channels).transpose(0, 3, 1, 2)


def _is_depthwise(shape: tuple[int, ...], groups: int) -> bool:
    return 1 < groups == shape[0] and shape[1] == 1


def _blocks_in_16_bytes(format: WeightFormat) -> int:
    return 1 if format.is_float else 8 // format.bits


def _panel_bytes(format: WeightFormat, weights: int) -> int:
    """Bytes of a stream or a panel of weights, padded to whole groups of blocks that share 16 bytes."""
    if format.is_float:
        return format.dtype.itemsize * weights
    return _ceil_div(weights, BLOCK * _blocks_in_16_bytes(format)) * BLOCK


def _depthwise_panels(values: NDArray[Any], fill: int) -> NDArray[Any]:
    """Order depthwise values as [channel pack][tap * 4], padded to whole packs."""
    taps = values.shape[2] * values.shape[3]
    padded = np.full((_ceil_div(len(values), 4) * 4, taps), fill, values.dtype)
    padded[: len(values)] = values.reshape(-1, taps)
    return padded.reshape(-1, 4, taps).swapaxes(1, 2).reshape(-1, 4 * taps)


def _blocks(values: NDArray[Any], groups: int, fill: int) -> NDArray[Any]:
    """Order the values as [convolution][output pack][tap][16], padded to whole packs."""
    out_channels, in_channels, height, width = values.shape
    out_packs, in_packs = _ceil_div(out_channels // groups, 4), _ceil_div(in_channels, 4)
    padded = np.full((groups, out_packs * 4, in_packs * 4, height, width), fill, values.dtype)
    padded[:, : out_channels // groups, :in_channels] = values.reshape(groups, -1, in_channels, height, width)
    split = padded.reshape(groups, out_packs, 4, in_packs, 4, height, width)
    blocks = split.transpose(_BLOCK_ORDER[values.dtype.kind == "f"])
    return blocks.reshape(groups, out_packs, in_packs * height * width, BLOCK)


def _values_of_blocks(blocks: NDArray[Any], shape: tuple[int, int, int, int], groups: int) -> NDArray[Any]:
    """Invert ``_blocks``; the padding is dropped."""
    out_channels, in_channels, height, width = shape
    in_packs = _ceil_div(in_channels, 4)
    split = blocks.reshape(groups, -1, in_packs, height, width, 4, 4)
    padded = split.transpose(np.argsort(_BLOCK_ORDER[blocks.dtype.kind == "f"]))
    padded = padded.reshape(groups, -1, in_packs * 4, height, width)
    return padded[:, : out_channels // groups, :in_channels].reshape(shape)


# From [group][output pack][output][input pack][input][y][x] to [group][output pack][input pack][y][x] and a block,
# which is [output][input] for integers and [input][output] for float.
_BLOCK_ORDER = {False: (0, 1, 3, 5, 6, 2, 4), True: (0, 1, 3, 5, 6, 4, 2)}


def _pair_packs(blocks: NDArray[Any]) -> NDArray[Any]:
    """Let two output packs' blocks of a tap lie together: [convolution][output pack][tap][16] to [block][16]."""
    convolutions, packs, taps, _ = blocks.shape
    pairs = blocks[:, : packs // 2 * 2].reshape(convolutions, packs // 2, 2, taps, BLOCK).swapaxes(2, 3)
    if blocks.dtype == np.float16:
        pairs = pairs.reshape(*pairs.shape[:4], 4, 4).swapaxes(3, 4)  # 8 output channels of an input channel, a vector
    parts = pairs.reshape(convolutions, -1, BLOCK), blocks[:, packs // 2 * 2 :].reshape(convolutions, -1, BLOCK)
    return np.concatenate(parts, axis=1).reshape(-1, BLOCK)


def _separate_packs(stream: NDArray[Any], convolutions: int, packs: int) -> NDArray[Any]:
    """Invert ``_pair_packs``."""
    split = stream.reshape(convolutions, -1, BLOCK)
    taps = split.shape[1] // packs
    paired = packs // 2 * 2 * taps
    pairs = split[:, :paired].reshape(convolutions, packs // 2, taps, 2, BLOCK)
    if stream.dtype == np.float16:
        pairs = pairs.reshape(*pairs.shape[:3], 4, 2, 4).swapaxes(3, 4).reshape(pairs.shape)
    pairs = pairs.swapaxes(2, 3)
    parts = pairs.reshape(convolutions, -1, taps, BLOCK), split[:, paired:].reshape(convolutions, -1, taps, BLOCK)
    return np.concatenate(parts, axis=1)


def _store(panels: NDArray[Any], format: WeightFormat, fill: int) -> NDArray[np.uint8]:
    """Turn panels [..., weights] into bytes [..., bytes], each padded to whole groups of blocks."""
    if format.is_float:
        return np.ascontiguousarray(panels).view(np.uint8)
    shared, stored = _blocks_in_16_bytes(format), _panel_bytes(format, panels.shape[-1])
    padded = np.full((*panels.shape[:-1], stored * shared), fill, panels.dtype)
    padded[..., : panels.shape[-1]] = panels
    blocks = padded.view(np.uint8).reshape(*panels.shape[:-1], -1, shared, BLOCK)
    shifts = (np.arange(shared, dtype=np.uint8) * format.bits)[:, np.newaxis]
    merged: NDArray[np.uint8] = np.bitwise_or.reduce(blocks << shifts, axis=-2)
    return merged.reshape(*panels.shape[:-1], stored)


def _load(stored: NDArray[Any], format: WeightFormat, weights: int) -> NDArray[Any]:
    """Invert ``_store``: bytes [..., bytes] to panels [..., weights]."""
    if format.is_float:
        return np.ascontiguousarray(stored).view(format.dtype)
    shared = _blocks_in_16_bytes(format)
    shifts = (np.arange(shared, dtype=np.uint8) * format.bits)[:, np.newaxis]
    groups_of_16 = stored.reshape(*stored.shape[:-1], -1, 1, BLOCK)
    blocks = groups_of_16 >> shifts & np.uint8(2**format.bits - 1)
    return blocks.reshape(*stored.shape[:-1], -1)[..., :weights].view(format.dtype)


def _bridge_gaps(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep a few more blocks [panel][tap], so that every step fits a byte."""
    kept = kept.copy()
    for panel in np.flatnonzero(~_steps_fit(kept)):
        tap = 0
        for following in np.flatnonzero(kept[panel]):
            while following - tap > LARGEST_STEP:
                tap += LARGEST_STEP
                kept[panel, tap] = True
            tap = int(following)
    return kept


def _steps_fit(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether no step of a panel exceeds a byte; [panel]."""
    if kept.shape[1] <= LARGEST_STEP + 1:
        return np.ones(len(kept), bool)
    return np.array([np.diff(np.flatnonzero(row), prepend=0).max(initial=0) <= LARGEST_STEP for row in kept])


def _list_blocks(kept: NDArray[np.bool_]) -> bytes:
    """The section that says which blocks [panel][tap] are there."""
    first = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype("<u4")
    panels, taps = np.nonzero(kept)
    steps = np.diff(taps, prepend=0)
    begins = np.flatnonzero(np.diff(panels, prepend=-1))
    steps[begins] = taps[begins]
    return first.tobytes() + steps.astype(np.uint8).tobytes()


def _zero_index(weights: ConvWeights) -> int:
    """Index that decodes to zero, which padded input channels need: whatever lies there is multiplied by it."""
    if weights.codebook is None:
        return 0
    if (zeros := np.flatnonzero(weights.codebook == 0)).size:
        return int(zeros[0])
    if len(weights.codebook) < 2**weights.format.bits:
        return len(weights.codebook)  # the stored table is zero past its last entry
    if weights.values.shape[1] % CHANNEL_PACK == 0 or weights.is_depthwise:
        return 0  # only output channels are padded, and their scale is zero
    raise SparrowError(
        f"{weights.values.shape[1]} input channels with a full codebook that has no zero",
        expected="a zero in the codebook, or a multiple of 4 input channels",
        next_step=f"store this layer as {WeightFormat.QS8C.value}",
    )


def pack_weights(weights: ConvWeights) -> bytes:
    """Pack weights for the kernels; the module's docstring has the layout.

    Args:
        weights: Checked weights.

    Returns:
        Header and sections, to be placed at a multiple of 16 bytes. Equal weights give equal bytes.

    Raises:
        SparrowError: Input channels need padding and the codebook has no zero to pad with.
    """
    fill = _zero_index(weights)
    paired = weights.format.is_float and not weights.is_depthwise
    lists = b""
    if weights.is_depthwise:
        panels = _depthwise_panels(weights.values, fill)
    else:
        by_rows = weights.pattern is BlockPattern.ROWS
        blocks = _blocks(_by_rows(weights.values, fill) if by_rows else weights.values, weights.groups, fill)
        stream = _pair_packs(blocks) if paired else blocks.reshape(-1, BLOCK)
        if weights.pattern is BlockPattern.S4X4:
            kept = _bridge_gaps(weights.stored_blocks())
            stream, lists = stream[kept.reshape(-1)], _list_blocks(kept)
        panels = stream.reshape(-1)
    values = _store(panels, weights.format, fill).tobytes()
    codebook = b"" if weights.codebook is None else weights.codebook.tobytes()
    padding = -weights.out_channels % CHANNEL_PACK
    sections = [codebook.ljust(CODEBOOK_ENTRIES, b"\0"), values]
    sections += [
        np.pad(constants, (0, padding)).tobytes() for constants in (weights.initial, weights.scale, weights.bias)
    ]
    sections += [lists] if lists else []
    body = bytearray()
    offsets = []
    for section in sections:
        offsets.append(_HEADER.size + len(body))
        body += section.ljust(_align(len(section)), b"\0")
    header = _HEADER.pack(
        MAGIC, VERSION, _FORMAT_CODES.index(weights.format), _PATTERN_CODES.index(weights.pattern),
        weights.out_channels, weights.in_channels, *weights.kernel, weights.groups,
        F32_PANEL_CHANNELS if paired else CHANNEL_PACK,
        0 if weights.codebook is None else len(weights.codebook), offsets[0], offsets[1], len(values), *offsets[2:5],
        _HEADER.size + len(body), offsets[5] if lists else 0, 0,
    )  # fmt: skip
    return header[:-4] + struct.pack("<I", _checksum(header, body)) + bytes(body)


def _checksum(header: bytes, body: bytes | bytearray | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(header[: _HEADER.size - 4]))


@dataclass(frozen=True)
class _Header:
    """Fields of ``struct spw_weights_header``, in its order."""

    magic: bytes
    version: int
    format: int
    pattern: int
    out_channels: int
    in_channels: int
    kernel_height: int
    kernel_width: int
    groups: int
    panel_channels: int
    codebook_entries: int
    codebook_offset: int
    values_offset: int
    values_bytes: int
    initial_offset: int
    scale_offset: int
    bias_offset: int
    total_bytes: int
    sparsity_offset: int
    checksum: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the values: [O, I / groups, kernel height, kernel width]."""
        return self.out_channels, self.in_channels // self.groups, self.kernel_height, self.kernel_width

    @property
    def stored_shape(self) -> tuple[int, int, int, int]:
        """The same, of the values as blocks are made of them."""
        if _PATTERN_CODES[self.pattern] is not BlockPattern.ROWS:
            return self.shape
        return self.out_channels, CHANNEL_PACK * row_taps(self.in_channels, self.shape[2:]), 1, 1

    def problems(self, data: bytes) -> Iterator[tuple[str, str]]:
        """List what is wrong with the bytes, as (got, expected); later checks hold only where earlier ones do."""
        if self.magic != MAGIC:
            yield f"packed weights that begin with {self.magic!r}", repr(MAGIC)
        if self.version != VERSION:
            yield f"packed weights of version {self.version}", f"version {VERSION}"
        if self.total_bytes != len(data):
            yield f"packed weights of {len(data)} bytes", f"{self.total_bytes} bytes, as their header says"
        if (checksum := _checksum(data, memoryview(data)[_HEADER.size :])) != self.checksum:
            yield f"packed weights with checksum {checksum:08x}", f"{self.checksum:08x}, as their header says"
        if self.format >= len(_FORMAT_CODES) or self.pattern >= len(_PATTERN_CODES):
            yield f"weight format {self.format} with block pattern {self.pattern}", "formats 0 to 4, patterns 0 to 2"
        if not self.groups or self.in_channels % self.groups or 0 in self.shape:
            yield f"weights of {self.out_channels} x {self.in_channels} channels in {self.groups} groups", "a divisor"
        format, depthwise = _FORMAT_CODES[self.format], _is_depthwise(self.shape, self.groups)
        pattern = _PATTERN_CODES[self.pattern]
        if pattern is BlockPattern.ROWS and (self.groups > 1 or self.in_channels >= CHANNEL_PACK):
            yield f"{self.in_channels} input channels in {self.groups} groups by rows", "1 to 3 channels in one group"
        panels, taps = _block_count(self.stored_shape, self.groups)
        blocks = panels * taps
        if (self.sparsity_offset != 0) != (pattern is BlockPattern.S4X4):
            yield f"a list of blocks at byte {self.sparsity_offset} with block pattern {self.pattern}", "one if sparse"
        if self.sparsity_offset:
            kept = self.kept_blocks(data)
            if kept is None:
                yield "a list of blocks that does not fit", f"steps within {taps} taps for each of {panels} panels"
                return
            blocks = int(kept.sum())
        values = _panel_bytes(format, BLOCK * blocks)
        if depthwise:
            taps = CHANNEL_PACK * self.kernel_height * self.kernel_width
            values = _ceil_div(self.out_channels, CHANNEL_PACK) * _panel_bytes(format, taps)
        if self.values_bytes != values:
            yield f"a values section of {self.values_bytes} bytes", f"{values}, which the shape takes"
        constants = _ceil_div(self.out_channels, CHANNEL_PACK) * CHANNEL_PACK * 4
        sections = {
            "codebook": (self.codebook_offset, CODEBOOK_ENTRIES),
            "values": (self.values_offset, values),
            "initial": (self.initial_offset, constants),
            "scale": (self.scale_offset, constants),
            "bias": (self.bias_offset, constants),
        }
        for name, (offset, size) in sections.items():
            if offset % ALIGNMENT or offset < _HEADER.size or offset + size > len(data):
                yield f"a {name} section at byte {offset} of {size} bytes", f"a multiple of 64 within {len(data)} bytes"

    def kept_blocks(self, data: bytes) -> NDArray[np.bool_] | None:
        """Read which blocks are there, [panel][tap]; None if that makes no sense."""
        panels, taps = _block_count(self.stored_shape, self.groups)
        lists = data[self.sparsity_offset :]
        if self.sparsity_offset % ALIGNMENT or self.sparsity_offset < _HEADER.size or len(lists) < 4 * (panels + 1):
            return None
        first = np.frombuffer(lists, "<u4", panels + 1).astype(np.int64)
        steps = np.frombuffer(lists, np.uint8, offset=4 * (panels + 1)).astype(np.int64)
        if first[0] != 0 or np.any(np.diff(first) < 0) or first[-1] > len(steps):
            return None
        kept = np.zeros((panels, taps), bool)
        for panel in range(panels):
            mine = steps[first[panel] : first[panel + 1]]
            at = np.cumsum(mine)
            if np.any(mine[1:] == 0) or (len(at) and at[-1] >= taps):
                return None
            kept[panel, at] = True
        return kept


def _read_blocks(header: _Header, data: bytes, stored: NDArray[np.uint8], format: WeightFormat) -> NDArray[Any]:
    """Blocks of dense or sparse values: [convolution][output pack][tap][16]."""
    packs, taps = _block_count(header.stored_shape, header.groups)
    if (kept := header.kept_blocks(data) if header.sparsity_offset else None) is not None:
        table = np.frombuffer(data, np.int8, CODEBOOK_ENTRIES, header.codebook_offset)
        zero = int(np.argmin(np.abs(table))) if format.has_codebook else 0
        stream = np.full((packs * taps, BLOCK), zero, format.dtype)
        stream[kept.reshape(-1)] = _load(stored, format, BLOCK * int(kept.sum())).reshape(-1, BLOCK)
    else:
        stream = _load(stored, format, BLOCK * packs * taps).reshape(-1, BLOCK)
    if format.is_float:
        return _separate_packs(stream, header.groups, packs // header.groups)
    return stream.reshape(header.groups, -1, taps, BLOCK)


def unpack_weights(data: bytes) -> ConvWeights:
    """Read packed weights back: the exact inverse of ``pack_weights``.

    Args:
        data: What ``pack_weights`` returned.

    Returns:
        Weights equal to those packed.

    Raises:
        SparrowError: The bytes are no packed weights or were changed; the message names what differs.
    """
    again = "compile the network again"
    if len(data) < _HEADER.size:
        raise SparrowError(
            f"packed weights of {len(data)} bytes", expected=f"a header of {_HEADER.size}", next_step=again
        )
    header = _Header(*_HEADER.unpack_from(data))
    for got, expected in header.problems(data):
        raise SparrowError(got, expected=expected, next_step=again)
    format = _FORMAT_CODES[header.format]
    stored = np.frombuffer(data, np.uint8, header.values_bytes, header.values_offset)
    if _is_depthwise(header.shape, header.groups):
        taps = header.kernel_height * header.kernel_width
        panels = _load(stored.reshape(_ceil_div(header.out_channels, CHANNEL_PACK), -1), format, CHANNEL_PACK * taps)
        values = panels.reshape(-1, taps, CHANNEL_PACK).swapaxes(1, 2).reshape(-1, *header.shape[1:])
        values = values[: header.out_channels]
    else:
        values = _values_of_blocks(_read_blocks(header, data, stored, format), header.stored_shape, header.groups)
        if _PATTERN_CODES[header.pattern] is BlockPattern.ROWS:
            values = _from_rows(values, header.shape)
    codebook = np.frombuffer(data, np.int8, header.codebook_entries, header.codebook_offset)
    count = header.out_channels
    return ConvWeights(
        format=format,
        values=np.ascontiguousarray(values),
        codebook=codebook.copy() if format.has_codebook else None,
        initial=np.frombuffer(data, np.int32, count, header.initial_offset).copy(),
        scale=np.frombuffer(data, np.float32, count, header.scale_offset).copy(),
        bias=np.frombuffer(data, np.float32, count, header.bias_offset).copy(),
        groups=header.groups,
        pattern=_PATTERN_CODES[header.pattern],
    )


def pack_activation(activation: NDArray[Any], fill: float) -> NDArray[Any]:
    """Pack channels by four: [N, C, H, W] to [N, ceil(C / 4), H, W, 4].

    Args:
        activation: Array of any type.
        fill: Value of the channels past the last: the zero point of int8, 0 of float.

    Returns:
        Contiguous array of the same type.
    """
    batch, channels, height, width = activation.shape
    packs = _ceil_div(channels, CHANNEL_PACK)
    padded = np.full((batch, packs * CHANNEL_PACK, height, width), fill, activation.dtype)
    padded[:, :channels] = activation
    return np.ascontiguousarray(padded.reshape(batch, packs, CHANNEL_PACK, height, width).transpose(0, 1, 3, 4, 2))


def unpack_activation(activation: NDArray[Any], channels: int) -> NDArray[Any]:
    """Invert ``pack_activation``: [N, ceil(C / 4), H, W, 4] to [N, C, H, W].

    Args:
        activation: Packed array.
        channels: C.

    Returns:
        Contiguous array of the same type, without the padding channels.
    """
    batch, packs, height, width, lanes = activation.shape
    planar = activation.transpose(0, 1, 4, 2, 3).reshape(batch, packs * lanes, height, width)
    return np.ascontiguousarray(planar[:, :channels])

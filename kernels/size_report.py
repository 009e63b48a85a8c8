"""What a quantized network's weights cost in bytes, all counted, beside the ratio that papers give.

Papers on weight sharing state 32 / (bits · share of weights that are not zero). That counts neither the table of a
layer, nor scales and biases, nor where the zeros are, which a program has to know; and it counts layers that stay at 8
bits or in float only if the paper says so. Here the weights are packed as the compiler packs them, and every byte is
put under what it is for.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.formats import BlockPattern, ConvWeights, WeightFormat, pack_weights, regroup

_FLOAT_BITS = 32
_BYTES_OF_CONSTANTS = 12  # of an output channel: first value of the sum, scale, bias
_BLOCK_WEIGHTS = 16  # of 4 x 4 channels


@dataclass(frozen=True)
class LayerSize:
    """Bytes of one layer's weight and constants.

    Attributes:
        name: Name of the layer.
        weights: Number of weights.
        zeros: How many of them are zero.
        bits: Bits of a stored weight in the packed form: 2, 4, 8 or 32; three-bit indices are stored in 4.
        nominal_bits: Bits of a weight as a paper counts them.
        values: Bytes of indices or int8 values that are stored, those of blocks of zeros left out.
        codebook: Bytes of the table.
        constants: Bytes of what each output channel needs: the scale, the bias, the first value of its sum.
        block_map: Bytes that say which blocks are stored; 0 where all are.
        alignment: Header and padding.
    """

    name: str
    weights: int
    zeros: int
    bits: int
    nominal_bits: int
    values: int
    codebook: int
    constants: int
    block_map: int
    alignment: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.values + self.codebook + self.constants + self.block_map + self.alignment


@dataclass(frozen=True)
class SizeReport:
    """Bytes of a network's layers.

    Attributes:
        layers: Every convolution and linear layer.
    """

    layers: tuple[LayerSize, ...]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def float_bytes(self) -> int:
        """Bytes of the weights in float32, without biases."""
        return self.weights * _FLOAT_BITS // 8

    @property
    def total(self) -> int:
        """All bytes of the packed weights."""
        return sum(layer.total for layer in self.layers)

    @property
    def true_ratio(self) -> float:
        """float_bytes / total."""
        return self.float_bytes / max(1, self.total)

    @property
    def paper_ratio(self) -> float:
        """32 / (bits · non-zero share), over the weights of all layers."""
        bits = sum((layer.weights - layer.zeros) * layer.nominal_bits for layer in self.layers)
        return self.weights * _FLOAT_BITS / max(1, bits)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON, totals included."""
        totals = {"weights": self.weights, "float_bytes": self.float_bytes, "packed_bytes": self.total,
                  "true_ratio": self.true_ratio, "paper_ratio": self.paper_ratio}  # fmt: skip
        return {**totals, "layers": [{**asdict(layer), "total": layer.total} for layer in self.layers]}

    def lines(self) -> list[str]:
        """Return the totals and how the two ratios differ, for people."""
        parts = {
            "indices and int8 values": sum(layer.values for layer in self.layers),
            "constants of channels": sum(layer.constants for layer in self.layers),
            "maps of blocks": sum(layer.block_map for layer in self.layers),
            "tables": sum(layer.codebook for layer in self.layers),
            "headers and alignment": sum(layer.alignment for layer in self.layers),
        }
        listed = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
        return [
            f"packed weights {self.total:,} bytes, 1/{self.true_ratio:.1f} of float32: {listed}",
            f"32 / (bits x non-zero share), as papers count, would be {self.paper_ratio:.1f}: it leaves out everything "
            "but the bits of weights that are not zero, single zeros inside stored blocks among them",
        ]


def float_size(weight: NDArray[np.floating[Any]], *, name: str, bias: bool) -> LayerSize:
    """Count the bytes of a layer that stays in float32.

    Args:
        weight: ``[out_channels, ...]``.
        name: Name of the layer.
        bias: Whether it has one.
    """
    zeros, constants = int((weight == 0).sum()), 4 * len(weight) if bias else 0
    return LayerSize(name, weight.size, zeros, _FLOAT_BITS, _FLOAT_BITS, 4 * weight.size, 0, constants, 0, 0)


def packed_size(
    values: NDArray[np.int8] | NDArray[np.uint8],
    table: NDArray[np.int8] | None,
    *,
    name: str,
    nominal_bits: int,
    groups: int = 1,
) -> LayerSize:
    """Pack a layer's weight, dense and without its blocks of zeros, and count the bytes of the smaller form.

    Args:
        values: uint8 indices or int8 weights, ``[out_channels, in_channels of a group, kernel height and width]``, the
            last one or two left out where they are 1.
        table: At most 16 values that the indices stand for, ``None`` for int8 weights.
        name: Name of the layer.
        nominal_bits: Bits of a weight as a paper counts them.
        groups: Groups of a convolution; those that the kernels have no form for are packed as one, with zeros between.
    """
    channels, count, shape = len(values), values.size, values.shape
    zeros = int(((values if table is None else table[values]) == 0).sum())
    values = values.reshape(*shape[:2], *(1,) * (4 - len(shape)), *shape[2:])
    if table is not None and groups > 1 and 0 not in table:
        values, table = table[values], None
    values, groups = regroup(values, groups, 0 if table is None else int((table != 0).argmin()))
    kind = WeightFormat.QS8C
    if table is not None:
        kind = WeightFormat.CB2T if len(table) <= 2**WeightFormat.CB2T.bits else WeightFormat.CB4T
    candidates = []
    for pattern in (BlockPattern.DENSE, BlockPattern.S4X4):
        weights = ConvWeights(
            kind, values, table, np.zeros(channels, np.int32), np.ones(channels, np.float32),
            np.zeros(channels, np.float32), groups=groups,
        )  # fmt: skip
        stored, block_map = weights.values.size, 0
        if pattern is not BlockPattern.DENSE:
            if weights.is_depthwise:
                continue
            kept = weights.stored_blocks()
            weights = replace(weights, pattern=pattern)
            stored, block_map = int(kept.sum()) * _BLOCK_WEIGHTS, 4 * (len(kept) + 1) + int(kept.sum())
        entries = 0 if table is None else len(table)
        counted = (stored * kind.bits // 8, entries, _BYTES_OF_CONSTANTS * channels, block_map)
        rest = len(pack_weights(weights)) - sum(counted)
        candidates.append(LayerSize(name, count, zeros, kind.bits, nominal_bits, *counted, rest))
    return min(candidates, key=lambda size: size.total)

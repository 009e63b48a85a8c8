"""Writes the seeds of the fuzz targets: ``python make_corpus.py FOLDER``. They are made anew each time, never kept."""

import struct
import sys
from pathlib import Path

import numpy as np

from sparrow.kernels.formats import BlockPattern, ConvWeights, WeightFormat, pack_weights

ARGUMENTS = (
    "--describe",
    "--input in --output out",
    "--input in --output out --threads 3 --repeat 2 --warmup 1 --min-seconds 0.5 --cpus 0,1 --times t --profile p",
    "--output out --input in --cpus 0,0",
    "--input in --output out --threads 100",
    "--input in --output out --cpus 0,1023,5 --threads 3",
    "--min-seconds nan --input in --output out",
)


def choices(
    kind: int, groups: int, in_channels: int, out_channels: int, kernel: int, **extra: int
) -> bytes:  # fmt: skip
    """``struct choices`` of fuzz_program.c: the modulus that the target takes of each field is undone here."""
    return struct.pack(
        "<12BBbBBII", kind, extra.get("float_output", 0), groups, extra.get("residual", 0), in_channels - 1,
        out_channels - 1, kernel - 1, kernel - 1, extra.get("stride", 1) - 1, 0, kernel // 2, 3, 3, -5,
        extra.get("threads", 1) - 1, 8, 0, 0,
    )  # fmt: skip


def program_seeds() -> list[bytes]:
    """One for each weight format and kind of layer."""
    rng = np.random.default_rng(0)
    seeds = []
    for format in WeightFormat:
        kind = {WeightFormat.F32: 1, WeightFormat.F16: 2}.get(format, 0)
        for groups, in_channels, out_channels, kernel in ((0, 9, 13, 3), (0, 17, 6, 1), (1, 7, 7, 3), (2, 8, 16, 3)):
            count = (1, in_channels, 2)[groups]
            shape = (out_channels, in_channels // count, kernel, kernel)
            codebook = None
            values = rng.normal(size=shape).astype(format.dtype)
            if format.has_codebook:
                codebook = rng.permutation(np.arange(-2, 2**format.bits - 2)).astype(np.int8)
                values = rng.integers(0, len(codebook), shape).astype(np.uint8)
            elif not format.is_float:
                values = rng.integers(-127, 128, shape).astype(np.int8)
            pattern = BlockPattern.DENSE
            if not format.is_float and groups != 1:
                pattern = BlockPattern.S4X4
                values[:, :4] = 0 if codebook is None else int(np.flatnonzero(codebook == 0)[0])
            constants = np.full((2, out_channels), 0.01, np.float32)
            weights = ConvWeights(format, values, codebook, np.arange(out_channels, dtype=np.int32), *constants,
                                  groups=count, pattern=pattern)  # fmt: skip
            # In the target, groups have 8 channels and 8 more for each of what is left by a division by 3.
            given = (3, 1) if groups == 2 else (in_channels, out_channels)
            head = choices(kind, groups, *given, kernel, threads=2, residual=kernel // 3, stride=1 + (kernel == 1))
            seeds.append(head + pack_weights(weights))
    return seeds


def main(folder: Path) -> None:
    """Write the seeds of both targets, each into a folder of the target's name."""
    runner = [text.replace(" ", "\n").encode() + b"\n\n" + bytes([1, 0, 2, 1]) for text in ARGUMENTS]
    for target, seeds in {"fuzz_program": program_seeds(), "fuzz_runner": [*runner, runner[1][:-3]]}.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (folder / target / f"seed{number}").write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

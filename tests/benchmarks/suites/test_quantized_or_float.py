"""On a core with plain NEON no quantized convolution on a small image takes longer than its float form would.

Both forms run once with nothing in the caches, as in a network whose weights do not fit there; the float form also has
to quantize its output for the next layer.
"""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predict.predict import load_core, price
from sparrow.benchmarks.predict.work import program_work
from sparrow.benchmarks.runners.qemu import find_qemu, run
from sparrow.deploy.compiler import runtime_objects
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.build import INCLUDE_DIR
from sparrow.kernels.formats import ConvWeights, WeightFormat, pack_weights
from sparrow.kernels.reference import F32, QA8, Conv2dOperator

needs_llvm = pytest.mark.skipif(shutil.which(blocks.MCA) is None, reason=f"{blocks.MCA} is missing")

# Input channels, output channels, pixels of a side, size of the window, stride.
SHAPES = [
    (64, 64, 4, 3, 1), (64, 64, 2, 3, 1), (64, 64, 1, 3, 1), (128, 128, 4, 3, 1), (16, 16, 4, 3, 1), (32, 32, 5, 3, 1),
    (64, 64, 7, 3, 1), (64, 128, 8, 3, 2), (64, 128, 4, 3, 2), (64, 64, 4, 1, 1), (128, 128, 2, 1, 1),
    (64, 64, 8, 1, 1), (512, 256, 1, 1, 1),
]  # fmt: skip

GUEST = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "spw.h"
static void in_turn(struct spw_context *context, size_t tasks, spw_task task, void *argument) {
  for (size_t index = 0; index < tasks; index++) task(argument, index, (int)(context->threads - 1));
}
int main(int count, char **arguments) {
  FILE *file = fopen(arguments[count - 1], "rb");
  uint32_t sizes[2];
  struct spw_conv2d operator;
  __asm__ volatile("hint #120" ::: "memory");
  while (fread(&operator, sizeof operator, 1, file) && fread(sizes, sizeof sizes, 1, file)) {
    void *weights = aligned_alloc(64, (sizes[0] + 63) / 64 * 64);
    if (fread(weights, 1, sizes[0], file) != sizes[0]) return 2;
    const size_t bytes = (spw_conv2d_workspace(&operator) + 63) / 64 * 64, outputs = sizes[1];
    unsigned char *input = calloc(1, 1 << 18), *output = calloc(4, 1 << 18), *quantized = calloc(1, 1 << 18);
    struct spw_context context = {SPW_ISA_NEON, 1, aligned_alloc(64, bytes), bytes, in_turn};
    __asm__ volatile("hint #122" ::: "memory");
    spw_conv2d_run(&operator, weights, input, NULL, output, &context);
    if (operator.type == SPW_CONV2D_F32)
      spw_quantize_qa8_f32_run((float *)output, 1, (int)outputs, operator.out_height * operator.out_width, 0.1f, 0,
                               (int8_t *)quantized, &context);
    __asm__ volatile("hint #122" ::: "memory");
  }
  __asm__ volatile("hint #121" ::: "memory");
  return 0;
}
"""


def case(shape: tuple[int, int, int, int, int], format: WeightFormat) -> bytes:
    """An operator, the sizes of what follows, and its weights."""
    inputs, outputs, side, size, stride = shape
    out = (side + 2 * (size // 2) - size) // stride + 1
    operator = Conv2dOperator(
        F32 if format.is_float else QA8, 0, 1, inputs, side, side, outputs, out, out, size, size, stride, stride, 1, 1,
        size // 2, size // 2, 1, 0, 0, -128, 127, 0, 1.0, float("-inf"), float("inf"), 0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    values = random.normal(size=(outputs, inputs, size, size)).astype(np.float32)
    codebook = None
    if not format.is_float:
        codebook = np.linspace(-127, 127, 16).astype(np.int8)
        values = random.integers(0, 16, values.shape).astype(np.uint8)
    ones = np.ones(outputs, np.float32)
    weights = pack_weights(ConvWeights(format, values, codebook, ones.astype(np.int32), ones, ones, 1))
    return operator.to_bytes() + struct.pack("<2I", len(weights), outputs) + weights


@pytest.mark.qemu
@needs_llvm
def test_small_images_are_not_slower_quantized(tmp_path: Path) -> None:
    if not find_qemu().plugins:
        pytest.skip("needs a QEMU with plugins")
    formats = (WeightFormat.F32, WeightFormat.CB4T)
    (tmp_path / "cases").write_bytes(b"".join(case(shape, format) for shape in SHAPES for format in formats))
    (tmp_path / "guest.c").write_text(GUEST, encoding="utf-8")
    toolchain, program = find_toolchain(), tmp_path / "guest"
    toolchain.compile(tmp_path / "guest.c", tmp_path / "guest.o", flags=[f"-I{INCLUDE_DIR}"])
    toolchain.link_executable([tmp_path / "guest.o", *runtime_objects(toolchain)], program)
    core = load_core("cortex-a53")
    result = run(program, [str(tmp_path / "cases")], cpu="cortex-a53", caches=[(core.l1, core.l2)])
    assert result.exit_code == 0, result.stderr
    sections = program_work(result.counts, core.pipeline_model).sections[1::2]
    cycles = [price(section.total, core.figures).cycles for section in sections]
    pairs = {shape: (cycles[2 * index], cycles[2 * index + 1]) for index, shape in enumerate(SHAPES)}
    slower = {shape: pair for shape, pair in pairs.items() if pair[1] > pair[0]}
    assert not slower

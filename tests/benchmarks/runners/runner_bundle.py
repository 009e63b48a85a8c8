"""A bundle with the real ``sparrow_run``, of a network written by hand: it doubles six numbers, in two steps."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from sparrow.deploy.bundle import MODEL, RUNNER, write_manifest
from sparrow.deploy.compiler import INCLUDE_FLAGS, RUNTIME_DIR, runtime_objects
from sparrow.deploy.toolchain import find_toolchain

SHAPE = (1, 1, 2, 3)

# The first number makes it misbehave: below -90 it hangs, below -80 it crashes, below -70 it fails, and every other
# negative one gets a wrong answer.
PROGRAM = r"""
#include <unistd.h>
#include "program.h"
static void copy(void *argument, size_t index, int thread) {
  const struct sparrow_frame *frame = argument;
  (void)thread;
  ((float *)frame->arena)[index] = ((const float *)frame->inputs[0].data)[index];
}
static int misbehave(const struct sparrow_frame *frame) {
  float first = *(const float *)frame->inputs[0].data;
  if (first < -90) for (;;) sleep(100);
  if (first < -80) __builtin_trap();
  if (first < -70) return 1;
  frame->context->parallel_for(frame->context, 6, copy, (void *)frame);
  return 0;
}
static int twice(const struct sparrow_frame *frame) {
  const float *from = (const float *)frame->arena;
  float factor = from[0] < 0 ? -2 : 2, *to = frame->outputs[0].data;
  for (int index = 0; index < 6; index++) to[index] = factor * from[index];
  return 0;
}
static const sparrow_tensor input = {"image", SPARROW_FLOAT32, 4, {1, 1, 2, 3}, 24};
static const sparrow_tensor output = {"y", SPARROW_FLOAT32, 2, {1, 6}, 24};
static const struct sparrow_step steps[] = {{"copy", misbehave}, {"twice", twice}};
SPARROW_API const sparrow_program network_program = {
  .version = SPARROW_PROGRAM_VERSION, .name = "doubling", .hash = "none", .weights = (const unsigned char *)"",
  .weights_checksum = 0xcbf29ce484222325u, .arena_bytes = 24, .inputs = &input, .input_count = 1, .outputs = &output,
  .output_count = 1, .steps = steps, .step_count = 2,
};
"""


def build_bundle(folder: Path) -> Path:
    """Build the bundle in a new folder below ``folder``."""
    bundle, toolchain = folder / "doubling", find_toolchain()
    bundle.mkdir()
    (folder / "program.c").write_text(PROGRAM)
    toolchain.compile(folder / "program.c", folder / "program.o", flags=INCLUDE_FLAGS)
    toolchain.compile(RUNTIME_DIR / "sparrow_run.c", folder / "run.o",
                      flags=(*INCLUDE_FLAGS, "-DSPARROW_PROGRAM=network_program"))  # fmt: skip
    toolchain.link_executable([folder / "program.o", folder / "run.o", *runtime_objects(toolchain)], bundle / RUNNER)
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "size"], ["flat"]), helper.make_node("Add", ["flat", "flat"], ["y"])],
        "double",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor("size", TensorProto.INT64, [2], [1, 6])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), bundle / MODEL)
    tensors = {"inputs": [{"name": "image", "shape": list(SHAPE), "dtype": "float32"}],
               "outputs": [{"name": "y", "shape": [1, 6], "dtype": "float32"}]}  # fmt: skip
    write_manifest(bundle, {"name": "doubling", "target": "cortex-a53", "layers": [], "weights_bytes": 0,
                            "arena_bytes": 24, "metadata": {}, "steps": ["copy", "twice"], **tensors})  # fmt: skip
    return bundle

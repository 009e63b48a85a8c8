"""Reads mutated ONNX files: each becomes a network or a SparrowError, within limits of time and memory.

``python fuzz_onnx.py SEED FIRST COUNT FOLDER [compile]`` tries the mutations FIRST to FIRST + COUNT - 1 of SEED and
prints a line of JSON for each, before it is tried (its number) and after it (its number, what became of it, where). A
crash is seen by the missing second line; the file that was tried is FOLDER/case.onnx. With ``compile``, those that can
be read are also compiled by TVM; the C compiler is left out.
"""

import json
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from types import FrameType

import numpy as np
import onnx

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "deploy"), str(TESTS / "deploy" / "frontend")]

from networks import residual_network, sparse_network  # noqa: E402

from models import Model, random  # noqa: E402
from sparrow.deploy.compiler import compile_model  # noqa: E402
from sparrow.deploy.frontend_onnx import load_onnx  # noqa: E402
from sparrow.deploy.inspection import inspect_onnx  # noqa: E402
from sparrow.kernels.errors import SparrowError  # noqa: E402

CPU_SECONDS = 20
MEMORY_BYTES = 6 << 30
# Where a length or a dimension goes wrong.
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 4096, 1 << 20, 2**31 - 1, -(2**31), 1 << 33, 2**63 - 1, -(2**63))


class NoCompiler:
    """In the place of a cross compiler: what it makes is empty."""

    name = version = identity = "none"

    def compile(self, source: Path, output: Path, **options: object) -> None:
        output.touch()

    def link_executable(self, inputs: list[Path], output: Path) -> None:
        output.touch()

    def link_shared(self, inputs: list[Path], output: Path, *, exports: list[str]) -> None:
        output.touch()

    def archive(self, objects: list[Path], output: Path) -> None:
        output.touch()


class TooLong(BaseException):
    """Raised by the alarm; no ``except Exception`` swallows it."""


def seed_models() -> list[onnx.ModelProto]:
    """Small networks that lead through every part of the front end."""
    float_network = Model()
    x = float_network.add("Conv", [float_network.input("x", random(1, 4, 6, 6)),
                                   float_network.constant(random(8, 4, 3, 3))], pads=[1, 1, 1, 1])  # fmt: skip
    x = float_network.add("Resize", [x, "", float_network.constant(np.array([1, 1, 2, 2], np.float32))])
    x = float_network.add("Pad", [x, float_network.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))])
    x = float_network.add("Split", [x], outputs=2, axis=1)
    x = float_network.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = float_network.add("ReduceMean", [x], axes=[2, 3], keepdims=0)
    x = float_network.add("CumSum", [x, float_network.constant(np.array(1))])
    float_network.add("TopK", [x, float_network.constant(np.array([2]))], outputs=2)

    shapes = Model(13)
    x = shapes.input("x", random(1, 3, 5, 6), ["batch", 3, "height", "width"])
    size = shapes.add("Gather", [shapes.add("Shape", [x]), shapes.constant(np.array([1]))])
    size = shapes.add("Concat", [size, shapes.constant(np.array([-1]))], axis=0)
    x = shapes.add("Reshape", [x, size])
    x = shapes.add("Slice", [x, *(shapes.constant(np.array([value])) for value in (0, 4, 1, 2))])
    x = shapes.add("Expand", [x, shapes.constant(np.array([2, 3, 2]))])
    x = shapes.add("Tile", [x, shapes.constant(np.array([1, 2, 1]))])
    shapes.add("OneHot", [shapes.add("ArgMax", [x], axis=2), shapes.constant(np.array(5)),
                          shapes.constant(np.array([0, 1], np.float32))])  # fmt: skip
    shapes.shapes["x"] = shapes.feeds["x"].shape

    recurrent = Model()
    operands = [recurrent.constant(random(*shape)) for shape in ((1, 16, 3), (1, 16, 4), (1, 32))]
    recurrent.add("LSTM", [recurrent.input("x", random(5, 1, 3)), *operands], hidden_size=4)

    integers = Model()
    grid = [integers.constant(np.float32(0.1)), integers.constant(np.uint8(3))]
    x = integers.add("QuantizeLinear", [integers.input("x", random(1, 4, 5, 5)), *grid])
    weights = [integers.constant(np.arange(-72, 72).astype(np.int8).reshape(4, 4, 3, 3)),
               integers.constant(np.float32(0.02)), integers.constant(np.int8(0))]  # fmt: skip
    x = integers.add("QLinearConv", [x, *grid, *weights, *grid])
    integers.add("DequantizeLinear", [x, *grid])
    return [residual_network(4), sparse_network(), float_network.build(), shapes.build(), recurrent.build(),
            integers.build()]  # fmt: skip


def mutate(model: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    """A changed copy: of its bytes, or, more often, of what they mean, so that the change gets past the parser."""
    if rng.random() < 0.2:
        return _mutate_bytes(bytearray(model.SerializeToString()), rng)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(rng.integers(1, 4)):
        _MUTATIONS[rng.integers(len(_MUTATIONS))](copy, rng)
    return copy.SerializeToString()


def _mutate_bytes(data: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data)))
        kind = rng.integers(4)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 20))]
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 20))]
    return bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.1 else data)


def _number(rng: np.random.Generator) -> int:
    return int(rng.choice(np.array(NUMBERS, object)))


def _one(items, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))] if len(items) else None


def _attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _one([node for node in model.graph.node if node.attribute], rng)
    if node is None:
        return
    attribute = _one(node.attribute, rng)
    kind = rng.integers(4)
    if attribute.ints and kind < 3:
        if kind == 0:
            del attribute.ints[int(rng.integers(len(attribute.ints))) :]
        elif kind == 1:
            attribute.ints.append(_number(rng))
        else:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = _number(rng)
    elif kind < 2:
        attribute.i = _number(rng)
    elif kind == 2:
        attribute.type = int(rng.integers(0, 15))
    else:
        node.attribute.remove(attribute)


def _initializer(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    tensor = _one(model.graph.initializer, rng)
    if tensor is None:
        return
    kind = rng.integers(6)
    if kind == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _number(rng)
    elif kind == 1:
        tensor.data_type = int(rng.integers(0, 26))
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
    elif kind == 3 and tensor.data_type == onnx.TensorProto.INT64 and len(tensor.raw_data) >= 8:
        values = np.frombuffer(tensor.raw_data, np.int64).copy()
        values[int(rng.integers(len(values)))] = _number(rng)
        tensor.raw_data = values.tobytes()
    elif kind == 4:
        data = bytearray(tensor.raw_data)
        for at in rng.integers(0, max(len(data), 1), 4 if data else 0):
            data[at] = int(rng.choice([0, 0x7F, 0x80, 0xFF]))
        tensor.raw_data = bytes(data)
    else:
        model.graph.initializer.remove(tensor)


def _dimension(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    value = _one([*model.graph.input, *model.graph.output, *model.graph.value_info], rng)
    shape = value.type.tensor_type.shape
    kind = rng.integers(4)
    if kind == 0 and shape.dim:
        shape.dim[int(rng.integers(len(shape.dim)))].dim_value = _number(rng)
    elif kind == 1:
        shape.dim.add().dim_value = _number(rng)
    elif kind == 2 and shape.dim:
        del shape.dim[0]
    else:
        value.type.tensor_type.elem_type = int(rng.integers(0, 26))


def _wiring(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)] + [""]
    node = _one(model.graph.node, rng)
    if node is None:
        return
    kind = rng.integers(5)
    if kind == 0 and node.input:
        node.input[int(rng.integers(len(node.input)))] = _one(names, rng)
    elif kind == 1 and node.output:
        node.output[int(rng.integers(len(node.output)))] = _one(names, rng)
    elif kind == 2:
        node.input.append(_one(names, rng))
    elif kind == 3 and node.input:
        del node.input[int(rng.integers(len(node.input)))]
    else:
        model.graph.output.add().name = _one(names, rng)


def _operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _one(model.graph.node, rng)
    if node is None:
        return
    kind = rng.integers(4)
    if kind == 0:
        node.op_type = _one(sorted({schema.name for schema in onnx.defs.get_all_schemas()}), rng)
    elif kind == 1:
        model.graph.node.remove(node)
    elif kind == 2:
        model.graph.node.append(node)
    else:
        node.domain = _one(["", "ai.onnx", "com.microsoft", "no.such.domain", "ai.onnx.ml"], rng)


def _version(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if rng.random() < 0.7 and model.opset_import:
        model.opset_import[0].version = int(rng.choice([0, 6, 7, 9, 11, 13, 17, 21, 23, 1 << 40]))
    else:
        model.ir_version = _number(rng)


_MUTATIONS = (_attribute, _attribute, _initializer, _initializer, _dimension, _wiring, _operator, _version)


def outcome(path: Path, *, lower: bool = False) -> tuple[str, str]:
    """What becomes of a file: ``network``, ``refused``, or a fault and where it arose."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # of computing: other work on the machine does not count
    try:
        inspect_onnx(path)
        load_onnx(path)
        if lower:
            compile_model(path, path.with_name("bundle"), target="cortex-a76", toolchain=NoCompiler())
    except SparrowError as error:
        return ("refused", "") if error.got else ("empty message", "")
    except TooLong:
        return "too long", traceback.format_exc(limit=-4)
    except BaseException as error:
        where = "".join(traceback.format_exc(limit=-3))
        return f"{type(error).__name__}: {error}"[:300], where
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "network", ""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TooLong


def main(seed: int, first: int, count: int, folder: Path, *, lower: bool) -> None:
    """Try ``count`` mutations."""
    os.environ["SPARROW_CACHE"] = str(folder / "cache")  # for what the compiler that is none makes
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    models = seed_models()
    path = folder / "case.onnx"
    onnx.save(models[0], path)
    assert outcome(path, lower=lower) == ("network", "")  # also imports what takes seconds
    signal.signal(signal.SIGPROF, _alarm)
    for number in range(first, first + count):
        path.write_bytes(mutate(models[number % len(models)], np.random.default_rng([seed, number])))
        print(json.dumps([number]), flush=True)
        print(json.dumps([number, *outcome(path, lower=lower)]), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]), lower=sys.argv[5:] == ["compile"])

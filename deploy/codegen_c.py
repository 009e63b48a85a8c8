"""Prints a lowered network as C: constant tables, one function for each operator call, one blob of weights.

After ``CallTIRRewrite`` and ``StaticPlanBlockMemory`` the main function is a straight line of calls on planned storage.
Each call becomes a step of ``struct sparrow_program`` (kernels/csrc/runtime/program.h).
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from sparrow.deploy.frontend_onnx import TensorInfo
from sparrow.deploy.operators import EXTERN_PREFIX, ConvLayer, c_float
from sparrow.deploy.passes.relax_rewriter import dtype_of, main_bindings, operator_name, static_shape
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.formats import pack_weights

ALIGNMENT = 64
API_TYPES = {
    "float32": "SPARROW_FLOAT32",
    "int8": "SPARROW_INT8",
    "uint8": "SPARROW_UINT8",
    "int32": "SPARROW_INT32",
    "int64": "SPARROW_INT64",
    "bool": "SPARROW_BOOL",
}
DL_TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}


@dataclass(frozen=True)
class GeneratedProgram:
    """What the C compiler and the linker need.

    Attributes:
        source: C source that defines ``<name>_program``.
        weights: Every constant, each aligned to 64 bytes.
        arena_bytes: Bytes of planned storage.
        steps: Names of the operator calls in order of execution.
        layer_bytes: Packed bytes of each Sparrow layer.
    """

    source: str
    weights: bytes
    arena_bytes: int
    steps: tuple[str, ...]
    layer_bytes: tuple[int, ...]


class WeightBlob:
    """Constants one after another, aligned; equal constants are stored once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._offsets: dict[bytes, int] = {}

    def add(self, content: bytes) -> int:
        """Append a constant and return its offset."""
        key = hashlib.sha256(content).digest()
        if key not in self._offsets:
            self.data.extend(bytes(-len(self.data) % ALIGNMENT))
            self._offsets[key] = len(self.data)
            self.data.extend(content)
        return self._offsets[key]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a C expression of its address."""

    address: str
    shape: tuple[int, ...]
    dtype: str


def checksum(data: bytes) -> int:
    """Hash a blob the way ``sparrow_checksum`` in kernels/csrc/runtime/runtime.c does."""
    mask, prime = (1 << 64) - 1, 0x100000001B3
    value = 0xCBF29CE484222325
    for word in np.frombuffer(data, "<u8", count=len(data) // 8).tolist():
        value = ((value ^ word) * prime) & mask
        value ^= value >> 32
    for byte in data[len(data) // 8 * 8 :]:
        value = ((value ^ byte) * prime) & mask
    return value


def generate_program(
    module: tvm.IRModule,
    layers: Iterable[ConvLayer],
    name: str,
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
) -> GeneratedProgram:
    """Print a lowered module.

    Args:
        module: Module after the last of ``deploy.pipeline.PHASES``.
        layers: Sparrow layers in order of their index.
        name: C identifier of the network.
        inputs: The network's inputs, in order.
        outputs: The network's outputs, in order.

    Returns:
        Source and weights.

    Raises:
        SparrowError: The lowered function holds something besides calls on planned storage.
    """
    return _Generator(module, list(layers), name).generate(inputs, outputs)


@dataclass
class _Generator:
    module: tvm.IRModule
    layers: list[ConvLayer]
    name: str
    blob: WeightBlob = field(default_factory=WeightBlob)
    places: dict[relax.Var, Place] = field(default_factory=dict)
    storages: dict[relax.Var, int] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)  # name, body
    functions: list[str] = field(default_factory=list)  # TVM functions that are called
    arena_bytes: int = 0

    def generate(self, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> GeneratedProgram:
        packed = [pack_weights(layer.weights) for layer in self.layers]
        offsets = [self.blob.add(content) for content in packed]
        main = self.module["main"]
        for index, param in enumerate(main.params):
            self.places[param] = self._place(f"frame->inputs[{index}].data", param)
        self._place_outputs(main)
        for binding in main_bindings(self.module):
            self._binding(binding.var, binding.value)
        self._copy_outputs(main)
        weights = bytes(self.blob.data)
        source = "\n".join(
            [
                *self._prologue(),
                *self._layer_table(offsets, packed),
                *self._step_functions(),
                *self._tensor_table("inputs", inputs),
                *self._tensor_table("outputs", outputs),
                *self._program(weights),
            ]
        )
        layer_bytes = tuple(len(content) for content in packed)
        return GeneratedProgram(source, weights, self.arena_bytes, tuple(n for n, _ in self.steps), layer_bytes)

    # Walking the lowered function

    def _binding(self, var: relax.Var, value: tvm.ir.Expr) -> None:
        operator = operator_name(value)
        if operator == "relax.memory.alloc_storage":
            (size,) = value.args[0].values
            self.storages[var] = self._reserve(int(size))
        elif operator == "relax.memory.alloc_tensor":
            offset = self.storages[value.args[0]] + int(value.args[1].value)
            self.places[var] = self._place(f"frame->arena + {offset}", var)
        elif operator == "relax.builtin.alloc_tensor":
            if var not in self.places:  # not an output
                place = self._place("", var)
                offset = self._reserve(int(np.prod(place.shape)) * np.dtype(place.dtype).itemsize)
                self.places[var] = Place(f"frame->arena + {offset}", place.shape, place.dtype)
        elif isinstance(value, relax.Var):
            self.places[var] = self.places[value]
        elif operator == "relax.reshape" or operator == "relax.memory.ensure_zero_offset":
            self.places[var] = self._place(self._operand(value.args[0]).address, var)
        elif operator in ("relax.memory.kill_tensor", "relax.memory.kill_storage"):
            return
        elif isinstance(value, tvm.ir.Call) and isinstance(value.op, relax.ExternFunc):
            self._sparrow_step(str(value.op.global_symbol), value.args)
        elif isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            self._tvm_step(value.op, value.args)
        elif isinstance(value, relax.Tuple):
            return
        else:
            raise SparrowError(
                f"the lowered network holds {operator or type(value).__name__}, which cannot be printed as C",
                expected="calls on planned storage; data-dependent shapes and control flow are not supported",
                next_step="look at the lowered form with: sparrow compile ... --dump-dir DIR",
            )

    def _place_outputs(self, main: relax.Function) -> None:
        """Let the tensors that are returned live in the caller's memory."""
        definitions = {binding.var: binding.value for binding in main_bindings(self.module)}
        for index, var in enumerate(self._results(main)):
            while isinstance(definitions.get(var), relax.Var):
                var = definitions[var]
            if operator_name(definitions.get(var)) == "relax.builtin.alloc_tensor" and var not in self.places:
                self.places[var] = self._place(f"frame->outputs[{index}].data", var)

    def _copy_outputs(self, main: relax.Function) -> None:
        """Copy results that had to be computed elsewhere: an input returned as it is, or one tensor returned twice."""
        for index, var in enumerate(self._results(main)):
            source, target = self._operand(var), f"frame->outputs[{index}].data"
            if source.address != target:
                size = int(np.prod(source.shape)) * np.dtype(source.dtype).itemsize
                self.steps.append(("copy", f"  memcpy({target}, {source.address}, {size});\n  return 0;\n"))

    def _results(self, main: relax.Function) -> list[tvm.ir.Expr]:
        result = main.body.body
        definitions = {binding.var: binding.value for binding in main_bindings(self.module)}
        result = definitions[result] if isinstance(definitions.get(result), relax.Tuple) else result
        return list(result.fields) if isinstance(result, relax.Tuple) else [result]

    def _sparrow_step(self, symbol: str, arguments: Iterable[tvm.ir.Expr]) -> None:
        if not symbol.startswith(EXTERN_PREFIX):  # a function of spw.h that has no weights
            values = ", ".join(self._argument(argument) for argument in arguments)
            call = f"  {symbol}({values}, frame->context);\n  return 0;\n"
            self.steps.append((symbol.removeprefix("spw_").removesuffix("_run"), call))
            return
        index = int(symbol.removeprefix(EXTERN_PREFIX))
        layer = self.layers[index]
        operands = [self._operand(argument).address for argument in arguments]
        source, residual, target = operands[0], operands[1] if layer.has_residual else "NULL", operands[-1]
        body = (
            f"  const struct sparrow_layer *layer = &layers[{index}];\n"
            f"  spw_conv2d_run(&layer->operator, frame->weights + layer->weights_offset, {source}, {residual},\n"
            f"                 {target}, frame->context);\n"
            "  return 0;\n"
        )
        self.steps.append((layer.name, body))

    def _tvm_step(self, function: tvm.ir.GlobalVar, arguments: Iterable[tvm.ir.Expr]) -> None:
        places = [self._operand(argument) for argument in arguments]
        symbol = f"__tvm_ffi_{tvm_symbol(self.name, function.name_hint)}"
        if symbol not in self.functions:
            self.functions.append(symbol)
        body = ["  struct sparrow_dl_tensor tensors[] = {\n"]
        for place in places:
            code, bits = dl_type(place.dtype)
            shape = ", ".join(map(str, place.shape))
            strides = ", ".join(map(str, _strides(place.shape)))
            body.append(
                f"    {{(void *)({place.address}), 1, 0, {len(place.shape)}, {code}, {bits}, 1,\n"
                f"     (int64_t[]){{{shape or 0}}}, (int64_t[]){{{strides or 0}}}, 0}},\n"
            )
        body.append(f"  }};\n  struct sparrow_tvm_value arguments[{len(places)}];\n")
        body.append(f"  return sparrow_call_tvm({symbol}, tensors, arguments, {len(places)});\n")
        self.steps.append((function.name_hint, "".join(body)))

    def _argument(self, expression: tvm.ir.Expr) -> str:
        """A number, or a tensor's address, in C."""
        if isinstance(expression, tvm.tirx.IntImm):
            return str(expression.value)
        if isinstance(expression, tvm.tirx.FloatImm):
            return c_float(expression.value)
        return f"(void *)({self._operand(expression).address})"

    def _operand(self, expression: tvm.ir.Expr) -> Place:
        if isinstance(expression, relax.Var):
            return self.places[expression]
        if isinstance(expression, tvm.ir.GenericConst):
            values = expression.value.numpy()
            return self._place(f"frame->weights + {self.blob.add(values.tobytes())}", expression)
        raise SparrowError(f"an operator takes {type(expression).__name__} as operand", expected="a tensor")

    def _place(self, address: str, expression: tvm.ir.Expr) -> Place:
        return Place(address, static_shape(expression), dtype_of(expression))

    def _reserve(self, size: int) -> int:
        offset = self.arena_bytes
        self.arena_bytes += -(-size // ALIGNMENT) * ALIGNMENT
        return offset

    # Printing

    def _prologue(self) -> list[str]:
        return [
            f"// Generated by Sparrow from the network {self.name}.",
            "#include <math.h>",
            "#include <string.h>",
            '#include "program.h"',
            f"extern const unsigned char {self.name}_weights[];",
            *(f"extern int32_t {function}(void *, struct sparrow_tvm_value *, int32_t, struct sparrow_tvm_value *);"
              for function in self.functions),
        ]  # fmt: skip

    def _layer_table(self, offsets: list[int], packed: list[bytes]) -> list[str]:
        if not self.layers:
            return []
        lines = ["static const struct sparrow_layer layers[] = {"]
        for layer, offset, content in zip(self.layers, offsets, packed, strict=True):
            fields = ", ".join(f".{key} = {value}" for key, value in layer.descriptor().items())
            lines.append(f"  // {_comment(layer.name)}\n  {{{{{fields}}}, {offset}, {len(content)}}},")
        return [*lines, "};"]

    def _step_functions(self) -> list[str]:
        lines = []
        for index, (name, body) in enumerate(self.steps):
            signature = f"static int step_{index}(const struct sparrow_frame *frame)"
            lines.append(f"// {_comment(name)}\n{signature} {{\n{body}}}")
        lines.append("static const struct sparrow_step steps[] = {")
        lines += [f'  {{"{_c_text(name)}", step_{index}}},' for index, (name, _) in enumerate(self.steps)]
        return [*lines, "};"]

    def _tensor_table(self, kind: str, tensors: tuple[TensorInfo, ...]) -> list[str]:
        lines = [f"static const sparrow_tensor {kind}[] = {{"]
        for tensor in tensors:
            if tensor.dtype not in API_TYPES:
                raise SparrowError(
                    f"{tensor.name} is {tensor.dtype}", expected=f"one of {', '.join(API_TYPES)}"
                )  # fmt: skip
            size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
            shape = ", ".join(map(str, tensor.shape))
            lines.append(
                f'  {{"{_c_text(tensor.name)}", {API_TYPES[tensor.dtype]}, {len(tensor.shape)}, {{{shape}}}, {size}}},'
            )
        return [*lines, "};"]

    def _program(self, weights: bytes) -> list[str]:
        layers = ("layers", str(len(self.layers))) if self.layers else ("NULL", "0")
        return [
            f"SPARROW_API const sparrow_program {self.name}_program = {{",
            "  .version = SPARROW_PROGRAM_VERSION,",
            f'  .name = "{self.name}",',
            f'  .hash = "{hashlib.sha256(weights).hexdigest()}",',
            f"  .weights = {self.name}_weights,",
            f"  .weights_bytes = {len(weights)},",
            f"  .weights_checksum = {checksum(weights)}u,",
            f"  .arena_bytes = {self.arena_bytes},",
            "  .inputs = inputs, .input_count = sizeof inputs / sizeof *inputs,",
            "  .outputs = outputs, .output_count = sizeof outputs / sizeof *outputs,",
            "  .steps = steps, .step_count = sizeof steps / sizeof *steps,",
            f"  .layers = {layers[0]}, .layer_count = {layers[1]},",
            "};",
            "",
        ]


def tvm_symbol(network: str, function: str) -> str:
    """Global symbol of a TVM function: prefixed, so that two networks can be linked into one program."""
    return f"{network}_{function}"


def dl_type(dtype: str) -> tuple[int, int]:
    """DLPack's type code and bits of a dtype name."""
    kind = dtype.rstrip("0123456789")
    return DL_TYPE_CODES[kind], 8 if kind == "bool" else int(dtype.removeprefix(kind))


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]


def _comment(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]|\\", "?", text)


def _c_text(text: str) -> str:
    """Escape a name for a C string, and for the JSON that sparrow_run prints it into."""
    return re.sub(r'[^\x20-\x7e]|["\\?%]', "_", text)

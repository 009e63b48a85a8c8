"""The ONNX front end: reads a file, brings it to the form that the compiler expects, and imports it into Relax.

The normal form: every shape static, constants folded, version 18 of the operator set or a newer one, operators that
TVM's importer lacks or gets wrong rewritten, integer operators as QuantizeLinear and DequantizeLinear on int8 grids, no
sub-byte initializer, batch normalization as a multiplication and an addition by channel, constant padding as a
concatenation.
Each step is in a file of ``deploy/frontend``. They keep the network's values to the last bit of float arithmetic; what
is reassociated are batch normalization, recurrent layers and transposed convolutions.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.utils

from sparrow.deploy.frontend.folding import (
    convert_opset,
    fold_constants,
    inline_functions,
    lift_constants,
    name_constant_outputs,
    remove_identities,
)
from sparrow.deploy.frontend.graph import apply_rules, remove_unused
from sparrow.deploy.frontend.importing import import_relax, refuse_obstacles
from sparrow.deploy.frontend.matrices import MATRIX_RULES, shorten_concats
from sparrow.deploy.frontend.network import OnnxNetwork, TensorInfo
from sparrow.deploy.frontend.operators import OPERATOR_RULES, UNTYPED_RULES, inline_definitions
from sparrow.deploy.frontend.precision import refuse_unusable_constants, use_float32
from sparrow.deploy.frontend.quantized import (
    QLINEAR_RULES,
    fold_dequantized_constants,
    hoist_quantize,
    unpack_sub_byte_initializers,
    use_signed_grids,
)
from sparrow.deploy.frontend.read import is_external, read_onnx
from sparrow.deploy.frontend.recurrent import RECURRENT_RULES
from sparrow.deploy.frontend.shapes import (
    cut_at,
    forget_shapes,
    infer_shapes,
    interface,
    pin_input_shapes,
    separate_initializers,
)
from sparrow.kernels.errors import SparrowError

__all__ = ["OnnxNetwork", "TensorInfo", "float_onnx", "import_relax", "load_onnx", "normalize", "read_onnx",
           "refusing_broken_models"]  # fmt: skip

log = logging.getLogger("sparrow")


def load_onnx(
    path: Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None, outputs: Sequence[str] = ()
) -> OnnxNetwork:
    """Read an ONNX file and bring it to normal form.

    Args:
        path: File to read.
        input_shapes: Static shape for inputs whose dimensions are dynamic, by input name. A dynamic first dimension
            that is not given becomes 1.
        outputs: Names of inner tensors to end the network at; by default its own outputs.

    Returns:
        The normalized network.

    Raises:
        SparrowError: The file is unreadable, a dimension stays unknown, or a weight is not finite.
    """
    with refusing_broken_models(path):
        model, changed = _read_pinned(path, input_shapes or {}, outputs)
        reference = None
        if changed:
            reference = onnx.ModelProto()
            reference.CopyFrom(infer_shapes(model))
        model = normalize(model)
        refuse_obstacles(model)
        return _network(infer_shapes(model, strict=True), reference)


def float_onnx(path: Path, input_shapes: Mapping[str, tuple[int, ...]], outputs: Sequence[str] = ()) -> OnnxNetwork:
    """Read a float network for quantization: of one operator set, shapes pinned, constants folded.

    Args:
        path: File to read.
        input_shapes: As in ``load_onnx``.
        outputs: As in ``load_onnx``.

    Returns:
        A network of standard operators, not yet in normal form.

    Raises:
        SparrowError: As ``load_onnx``.
    """
    with refusing_broken_models(path):
        model, _ = _read_pinned(path, input_shapes, outputs)
        lift_constants(model)
        model = fold_constants(convert_opset(model))
        refuse_unusable_constants(model)
        refuse_obstacles(model)
        return _network(infer_shapes(model), None)


@contextmanager
def refusing_broken_models(path: Path) -> Iterator[None]:
    """Tell of whatever a model runs into that the checker passes although an operator does not fit its operands.

    Args:
        path: File of the model, for the message.

    Raises:
        SparrowError: The block raised something else.
    """
    try:
        yield
    except SparrowError:
        raise
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")[:300]
        raise SparrowError(
            f"{path} holds a network that contradicts itself: {type(error).__name__}: {first_line}",
            expected="operators whose attributes and operands belong together",
            next_step="try it in onnxruntime; if it runs there, report it with what -v prints",
        ) from error


def _read_pinned(
    path: Path, input_shapes: Mapping[str, tuple[int, ...]], outputs: Sequence[str]
) -> tuple[onnx.ModelProto, bool]:
    """Read a network and pin its inputs; the second value tells whether it is another one than the file holds."""
    model = read_onnx(path)
    changed = bool(outputs) or is_external(path)
    changed |= separate_initializers(model)
    pin_input_shapes(model, input_shapes)
    model = inline_functions(model)
    if outputs:
        model = cut_at(model, outputs)
    changed |= use_float32(model)
    return model, changed


def _network(model: onnx.ModelProto, reference: onnx.ModelProto | None) -> OnnxNetwork:
    return OnnxNetwork(
        model,
        interface(list(model.graph.input), "input"),
        interface(list(model.graph.output), "output"),
        {entry.key: entry.value for entry in model.metadata_props},
        reference,
    )


def normalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Bring a model whose inputs are pinned to normal form.

    Args:
        model: Model; it may be changed.

    Raises:
        SparrowError: A weight cannot be used, or shapes contradict each other.
    """
    lift_constants(model)
    model = convert_opset(model)
    apply_rules(model, QLINEAR_RULES)
    model = infer_shapes(model)
    apply_rules(model, UNTYPED_RULES)
    model = fold_constants(inline_definitions(model))
    unpack_sub_byte_initializers(model)
    refuse_unusable_constants(model)
    remove_identities(model)
    for rules in (OPERATOR_RULES, RECURRENT_RULES, {"DequantizeLinear": fold_dequantized_constants}, MATRIX_RULES):
        model = infer_shapes(model)
        apply_rules(model, rules)
        remove_identities(model)
        remove_unused(model)
    shorten_concats(model)
    use_signed_grids(model)
    hoist_quantize(model)
    name_constant_outputs(model)
    remove_unused(model)
    forget_shapes(model)
    return infer_shapes(model)

"""Reading and checking an ONNX file."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.defs import onnx_opset_version

from sparrow.kernels.errors import SparrowError

_OLDEST_OPSET = 7  # before it, operators broadcast by rules of their own
_EXPORT_AGAIN = "export it again, for example with: sparrow export network.pt -o network.onnx"
_BROKEN = (DecodeError, OSError, ValueError, onnx.checker.ValidationError)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, and the files that hold its weights if there are such.

    Args:
        path: File to read.

    Returns:
        The model as it stands in the file, all weights loaded.

    Raises:
        SparrowError: The file is missing, is no ONNX model, is truncated, lacks files with weights, is of an operator
            set that is not known, or breaks the ONNX specification.
    """
    if not path.is_file():
        raise SparrowError(f"{path} is not a file", expected="an ONNX model", next_step="check the path")
    try:
        model = onnx.load(path, load_external_data=False)
    except _BROKEN as error:
        raise SparrowError(
            f"{path} ({path.stat().st_size} bytes) is not a readable ONNX model: {error}",
            expected="a complete ONNX protobuf file; this one is truncated or of another format",
            next_step=_EXPORT_AGAIN,
        ) from error
    if not model.graph.node or not model.opset_import:
        raise SparrowError(
            f"{path} holds no ONNX graph", expected="a model with at least one node", next_step=_EXPORT_AGAIN
        )
    _check_opset(path, opset_of(model))
    _load_external_data(path, model)
    unstated = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
    for value in unstated:  # the checker alone insists on one; it follows from the rest
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: larger than protobuf's 2 GB
        raise SparrowError(
            f"{path} breaks the ONNX specification: {str(error).splitlines()[0]}",
            expected="a model that onnx.checker accepts",
            next_step=_EXPORT_AGAIN,
        ) from error
    for value in unstated:
        value.type.tensor_type.ClearField("shape")
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operator set that a model uses; 0 if it uses none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def is_external(path: Path) -> bool:
    """Tell whether a readable model keeps weights in other files."""
    return any(_external_tensors(onnx.load(path, load_external_data=False)))


def _external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    return (tensor for tensor in model.graph.initializer if onnx.external_data_helper.uses_external_data(tensor))


def _check_opset(path: Path, version: int) -> None:
    newest = onnx_opset_version()
    if not _OLDEST_OPSET <= version <= newest:
        raise SparrowError(
            f"{path} uses {f'version {version} of' if version else 'none of'} ONNX's operator set",
            expected=f"version {_OLDEST_OPSET} to {newest}",
            next_step="export it again with opset_version=17"
            + (", or install a newer onnx: pip install --upgrade onnx" if version > newest else ""),
        )


def _load_external_data(path: Path, model: onnx.ModelProto) -> None:
    needed: dict[str, int] = {}  # file -> bytes that it has to have
    for tensor in _external_tensors(model):
        info = onnx.external_data_helper.ExternalDataInfo(tensor)
        end = (info.offset or 0) + (info.length or 0)
        needed[info.location] = max(end, needed.get(info.location, 0))
    wrong = []
    for name, size in needed.items():
        file = path.parent / name
        if not file.resolve().is_relative_to(path.parent.resolve()):
            wrong.append(f"{name} lies outside the model's folder")
            continue
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            wrong.append(f"{name} is missing")
        elif found < size:
            wrong.append(f"{name} has {found} bytes of {size}")
    if not wrong:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
            return
        except _BROKEN as error:
            wrong.append(str(error).splitlines()[0])
    raise SparrowError(
        f"{path} keeps weights in other files, and {', '.join(wrong)}",
        expected="the files that the model names, complete and beside it",
        next_step=f"copy them to {path.parent}, or export the model into one file (external_data=False)",
    )

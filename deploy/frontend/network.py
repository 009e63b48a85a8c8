"""What the front end hands on."""

from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class TensorInfo:
    """Name, static shape and numpy dtype name of a network's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class OnnxNetwork:
    """A checked ONNX model in normal form.

    Attributes:
        model: The model, every shape static.
        inputs: Inputs in order, initializers excluded.
        outputs: Outputs in order.
        metadata: The file's metadata properties.
        reference: The network to verify against, if the file as it stands is none: it was in half or double precision,
            or its weights lie in other files.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    reference: onnx.ModelProto | None = None

"""MNN: converted and quantized by the functions in its wheel; its console scripts would install and report things."""

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNTIME = "MNN"


def convert(model: Path, precision: str, calibration: NDArray[np.float32], folder: Path) -> None:
    """Write ``model.mnn``; see ``Peer`` for the arguments. Half precision is chosen when it is loaded."""
    tools = importlib.import_module("_tools")
    target = folder / "model.mnn"
    tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", str(model), "--MNNModel", str(target), "--bizCode",
                      "sparrow"])  # fmt: skip
    if not target.exists():
        raise RuntimeError("mnnconvert wrote no model")
    if precision == "int8":
        with tempfile.TemporaryDirectory() as scratch:
            _quantize(tools, target, calibration, Path(scratch))


def _quantize(tools: Any, target: Path, calibration: NDArray[np.float32], scratch: Path) -> None:
    # Its quantizer reads pictures, so that the calibration inputs become some, over the range that they have.
    image = importlib.import_module("PIL.Image")
    _, _, channels, height, width = calibration.shape
    formats = {1: "GRAY", 3: "RGB"}
    if channels not in formats:
        raise RuntimeError(f"mnnquant calibrates with pictures of 1 or 3 channels, and the input has {channels}")
    low, high = float(calibration.min()), float(calibration.max())
    step = (high - low) / 255
    pictures = scratch / "calibration"
    pictures.mkdir()
    for number, values in enumerate(calibration[:, 0]):
        levels = np.round((values - low) / step).astype(np.uint8)
        image.fromarray(levels[0] if channels == 1 else levels.transpose(1, 2, 0)).save(pictures / f"{number}.png")
    settings = {
        "format": formats[channels],
        "mean": [-low / step] * channels,
        "normal": [step] * channels,
        "width": width,
        "height": height,
        "path": f"{pictures}/",
        "used_image_num": len(calibration),
        "feature_quantize_method": "EMA",
        "weight_quantize_method": "MAX_ABS",
    }
    (scratch / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    quantized = scratch / "quantized.mnn"
    tools.mnnquant(["mnnquant", str(target), str(quantized), str(scratch / "settings.json")])
    if not quantized.exists():
        raise RuntimeError("mnnquant wrote no model")
    shutil.copyfile(quantized, target)


def load(runtime: Any, folder: Path, precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a converted network; the result maps one input to its first output."""
    interpreter = runtime.Interpreter(str(folder / "model.mnn"))
    settings = {"backend": "CPU", "numThread": 1, "precision": "low" if precision == "fp16" else "normal"}
    session = interpreter.createSession(settings)
    source, target = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    layout = runtime.Tensor_DimensionType_Caffe
    shape, kind = target.getShape(), runtime.Halide_Type_Float

    def infer(values: NDArray[np.float32]) -> NDArray[np.float32]:
        source.copyFrom(runtime.Tensor(values.shape, kind, values, layout))
        interpreter.runSession(session)
        result = runtime.Tensor(shape, kind, np.zeros(shape, np.float32), layout)
        target.copyToHostTensor(result)
        return np.array(result.getNumpyData(), np.float32)

    return infer

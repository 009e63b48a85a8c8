"""ONNX Runtime: takes the network as it is; int8 by its own static quantization."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNTIME = "onnxruntime"


def convert(model: Path, precision: str, calibration: NDArray[np.float32], folder: Path) -> None:
    """Write ``model.onnx``; see ``Peer`` for the arguments."""
    target = folder / "model.onnx"
    if precision == "fp32":
        shutil.copyfile(model, target)
        return
    quantization = importlib.import_module("onnxruntime.quantization")
    session = importlib.import_module(RUNTIME).InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Hands the calibration inputs out one by one."""

        def __init__(self) -> None:
            self._inputs = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            values = next(self._inputs, None)
            return None if values is None else {name: values}

    optimized = folder / "optimized.onnx"
    importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process(
        str(model), str(optimized), skip_symbolic_shape=True
    )
    signed = quantization.QuantType.QInt8
    quantization.quantize_static(str(optimized), str(target), Reader(), quant_format=quantization.QuantFormat.QDQ,
                                 activation_type=signed, weight_type=signed, per_channel=True)  # fmt: skip
    optimized.unlink()


def load(runtime: Any, folder: Path, precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a converted network; the result maps one input to its first output."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(values: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(None, {name: values})[0]
        return result

    return infer

"""LiteRT: converted by LiteRT Torch from the PyTorch module that pnnx makes; int8 by AI Edge Quantizer."""

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNTIME = "ai_edge_litert.interpreter"


def convert(model: Path, precision: str, calibration: NDArray[np.float32], folder: Path) -> None:
    """Write ``model.tflite``; see ``Peer`` for the arguments."""
    from sparrow.benchmarks.peers.pnnx import torch_module

    target = folder / "model.tflite"
    with tempfile.TemporaryDirectory() as scratch:
        module = torch_module(model, calibration[0].shape, Path(scratch))
        example = importlib.import_module("torch").from_numpy(calibration[0].copy())
        importlib.import_module("litert_torch").convert(module, (example,)).export(str(target))
    if precision == "int8":
        quantizer_module = importlib.import_module("ai_edge_quantizer.quantizer")
        recipe = importlib.import_module("ai_edge_quantizer.recipe")
        operators = importlib.import_module("ai_edge_quantizer.qtyping").TFLOperationName
        quantizer = quantizer_module.Quantizer(str(target))
        quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
        # Inputs and outputs stay float32, as with all other runtimes.
        for operator in (operators.INPUT, operators.OUTPUT):
            quantizer.update_quantization_recipe(".*", operator, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE)
        signatures = importlib.import_module(RUNTIME).Interpreter(str(target)).get_signature_list()
        ((signature, names),) = signatures.items()
        samples = [{names["inputs"][0]: values} for values in calibration]
        result = quantizer.quantize(quantizer.calibrate({signature: samples}))
        result.export_model(str(target), overwrite=True)


def load(runtime: Any, folder: Path, precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a converted network; the result maps one input to its first output."""
    interpreter = runtime.Interpreter(str(folder / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def infer(values: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter.set_tensor(source, values)
        interpreter.invoke()
        result: NDArray[np.float32] = interpreter.get_tensor(target)
        return result

    return infer

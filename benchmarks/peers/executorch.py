"""ExecuTorch: exported from the PyTorch module that pnnx makes, its layers handed to XNNPACK; int8 by XNNPACKQuantizer.

The wheel's Python binding needs PyTorch for aarch64, half a gigabyte that computes nothing here: a few lines of C++
call the runtime's libraries instead.
"""

import ctypes
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNTIME = "ctypes"

_SHIM = Path(__file__).with_name("executorch_shim.cpp")
_LIBRARIES = ("executorch", "executorch_backend_xnnpack", "executorch_threadpool", "executorch_kernels_optimized",
              "executorch_kernels_quantized")  # fmt: skip
_LARGEST_OUTPUT = 1 << 22


def convert(model: Path, precision: str, calibration: NDArray[np.float32], folder: Path) -> None:
    """Write ``model.pte`` and ``shim.so``; see ``Peer`` for the arguments."""
    from sparrow.benchmarks.peers.pnnx import torch_module

    torch = importlib.import_module("torch")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = importlib.import_module("executorch.exir")
    inputs = [torch.from_numpy(values.copy()) for values in calibration]
    with tempfile.TemporaryDirectory() as scratch:
        module = torch_module(model, calibration[0].shape, Path(scratch))
    program = torch.export.export(module, (inputs[0],))
    if precision == "int8":
        program = torch.export.export(_quantized(program.module(), inputs), (inputs[0],))
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()]).to_executorch()
    _build_shim(folder / "shim.so")
    (folder / "model.pte").write_bytes(lowered.buffer)


def _quantized(module: Any, inputs: list[Any]) -> Any:
    quantizers = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    settings = quantizers.get_symmetric_quantization_config(is_per_channel=True)
    prepared = pt2e.prepare_pt2e(module, quantizers.XNNPACKQuantizer().set_global(settings))
    for values in inputs:
        prepared(values)
    return pt2e.convert_pt2e(prepared)


def _build_shim(target: Path) -> None:
    from sparrow.benchmarks.runners.arm_userland import arm_userland

    (wheel,) = arm_userland(["executorch"]).packages
    package = wheel / "executorch"
    headers = (package / "include", package / "include/executorch/runtime/core/portable_type/c10")
    subprocess.run(
        [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.28", "-std=c++17", "-O2", "-shared",
         "-fPIC", "-fvisibility=hidden", "-DC10_USING_CUSTOM_GENERATED_MACROS", *(f"-I{path}" for path in headers),
         str(_SHIM), f"-L{package / 'lib'}", "-Wl,--no-as-needed", *(f"-l{name}" for name in _LIBRARIES), "-Wl,-s",
         "-o", str(target)],
        check=True,
    )  # fmt: skip


def load(runtime: Any, folder: Path, precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a converted network; the result maps one input to its first output."""
    package = next(Path(entry, "executorch") for entry in sys.path if Path(entry, "executorch", "lib").is_dir())
    # They find one another by name once they are loaded.
    for name in (_LIBRARIES[0], "executorch_threadpool", *_LIBRARIES[1:]):
        ctypes.CDLL(str(package / "lib" / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "shim.so"))
    pointer = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
    library.executorch_open.restype = ctypes.c_void_p
    library.executorch_infer.argtypes = [ctypes.c_void_p, pointer, pointer, ctypes.c_long]
    library.executorch_infer.restype = ctypes.c_long
    error = ctypes.c_int(0)
    network = library.executorch_open(str(folder / "model.pte").encode(), ctypes.byref(error))
    if not network:
        raise RuntimeError(f"ExecuTorch cannot open its network: error {error.value}")
    output = np.empty(_LARGEST_OUTPUT, np.float32)

    def infer(values: NDArray[np.float32]) -> NDArray[np.float32]:
        length = library.executorch_infer(network, values, output, output.size)
        if length < 0:
            raise RuntimeError(f"ExecuTorch cannot compute its output: error {-length}")
        return output[:length].copy()

    return infer

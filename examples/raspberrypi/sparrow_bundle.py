"""Runs a Sparrow bundle from Python: NumPy arrays in, NumPy arrays out.

Copy this file beside your program. It needs NumPy, 64-bit ARM Linux with glibc 2.17 or newer, and of the bundle's
folder ``manifest.json`` and ``lib<name>.so``.

    with SparrowBundle("r20", threads=4) as network:
        (logits,) = network(image)
"""

import ctypes
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA, SCHEMA_VERSION = "sparrow-bundle", 1


class SparrowRuntimeError(RuntimeError):
    """The network could not be loaded or run; the message is the runtime's own."""


class _Buffer(ctypes.Structure):
    """``sparrow_buffer`` of the bundle's header."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: Its name.
        shape: Its shape, the batch included.
        dtype: Its type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class SparrowBundle:
    """A network that is loaded, with its memory and its threads.

    Calls from several threads wait for one another; a bundle may be opened more than once to run at the same time.

    Attributes:
        name: Name of the network.
        inputs: Its inputs, in the order of a call's arguments.
        outputs: Its outputs, in the order of a call's results.
        metadata: What its ONNX file says of it, such as ``sparrow.pixel_mean`` (JSON).

    Args:
        folder: Bundle folder, as ``sparrow compile`` wrote it.
        threads: Threads to run on, 1 to 64.
        cpus: Numbers of the cores to run on, such as those of the fast cluster; by default the system chooses.

    Raises:
        SparrowRuntimeError: The folder is no bundle, its library does not load here, or the runtime refuses.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, cpus: Sequence[int] = ()) -> None:
        self._model = ctypes.c_void_p()
        self._lock = threading.Lock()
        manifest = _read_manifest(Path(folder))
        self.name: str = manifest["name"]
        self.metadata: dict[str, str] = manifest["metadata"]
        self.inputs, self.outputs = (
            tuple(Tensor(info["name"], tuple(info["shape"]), np.dtype(info["dtype"])) for info in manifest[key])
            for key in ("inputs", "outputs")
        )
        path = Path(folder, f"lib{self.name}.so").absolute()
        try:
            self._library = ctypes.CDLL(str(path))
            program = ctypes.c_byte.in_dll(self._library, f"{self.name}_program")
        except (OSError, ValueError) as error:
            raise SparrowRuntimeError(f"{path} does not load on this machine: {error}") from error
        self._library.sparrow_last_error.restype = ctypes.c_char_p
        for function in ("sparrow_run", "sparrow_set_cpus", "sparrow_destroy", "sparrow_last_error"):
            # Without it a pointer would be passed as a 32-bit number.
            getattr(self._library, function).argtypes = {
                "sparrow_run": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
                "sparrow_set_cpus": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
            }.get(function, (ctypes.c_void_p,))
        self._check(self._library.sparrow_create(ctypes.byref(program), threads, ctypes.byref(self._model)))
        if cpus:
            numbers = (ctypes.c_int * len(cpus))(*cpus)
            try:
                self._check(self._library.sparrow_set_cpus(self._model, numbers, len(cpus)))
            except SparrowRuntimeError:
                self.close()
                raise

    def __call__(self, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the network once.

        Args:
            *arrays: The inputs in order, of their shapes (a batch of one may be left out). They are converted to the
                network's types if nothing is lost.

        Returns:
            The outputs in order, new arrays.

        Raises:
            ValueError: An input is missing, or has another shape or an unfit type.
            SparrowRuntimeError: The network failed, or is closed.
        """
        if len(arrays) != len(self.inputs):
            raise ValueError(f"{self.name} takes {len(self.inputs)} inputs, got {len(arrays)}")
        given = [_fit(tensor, np.asarray(array)) for tensor, array in zip(self.inputs, arrays, strict=True)]
        results = [np.empty(tensor.shape, tensor.dtype) for tensor in self.outputs]
        with self._lock:
            if not self._model:
                raise SparrowRuntimeError(f"{self.name} is closed")
            self._check(self._library.sparrow_run(self._model, _buffers(given), len(given), _buffers(results),
                                                  len(results)))  # fmt: skip
        return tuple(results)

    def close(self) -> None:
        """End the threads and free the memory; done again it does nothing."""
        with self._lock:
            if self._model:
                self._library.sparrow_destroy(self._model)
            self._model = ctypes.c_void_p()

    def __enter__(self) -> "SparrowBundle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status:
            # Without a model it is the text of this thread's last sparrow_create().
            raise SparrowRuntimeError(self._library.sparrow_last_error(self._model).decode(errors="replace"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        found = manifest["schema"], manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SparrowRuntimeError(f"{folder} is no bundle: {error!r}") from error
    if found != (SCHEMA, SCHEMA_VERSION):
        raise SparrowRuntimeError(f"{folder} is {found[0]} version {found[1]}, expected {SCHEMA} {SCHEMA_VERSION}")
    return manifest


def _fit(tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    if array.shape not in (tensor.shape, tensor.shape[1:] if tensor.shape[0] == 1 else tensor.shape):
        raise ValueError(f"input {tensor.name} has the shape {array.shape}, expected {tensor.shape}")
    if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
        raise ValueError(f"input {tensor.name} is {array.dtype}, expected {tensor.dtype}")
    return np.ascontiguousarray(array, tensor.dtype)


def _buffers(arrays: Sequence[NDArray[Any]]) -> ctypes.Array[_Buffer]:
    return (_Buffer * len(arrays))(*((array.ctypes.data, array.nbytes) for array in arrays))

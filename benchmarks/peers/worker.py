"""What runs in a process of its own for a peer: its converter on this machine, or its runtime inside the userland.

It is started as a script, with the peer's packages on the search path, and imports nothing of Sparrow.

    worker.py convert PEER MODEL PRECISION CALIBRATION FOLDER    convert a network
    worker.py start PEER                                         load the runtime alone, to see its memory
    worker.py infer PEER FOLDER PRECISION INPUTS OUTPUTS         compute outputs; the last input is the marked region

PEER is the Python file of a peer, MODEL an ONNX file, and CALIBRATION, INPUTS and OUTPUTS are arrays in NumPy's format
whose first dimension counts inputs.
"""

import ctypes
import importlib
import importlib.util
import mmap
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# As AArch64 code: hint #120 and hint #121, each followed by a return.
_MARKS = struct.pack("<4I", 0xD5032F1F, 0xD65F03C0, 0xD5032F3F, 0xD65F03C0)


def region_marks() -> tuple[Callable[[], None], Callable[[], None]]:
    """Functions that begin and end a measured region, for an AArch64 process that runs under the counter."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_MARKS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(None)
    begin, end = function(address), function(address + 8)
    begin.page = page  # type: ignore[attr-defined]  # what it calls must outlive it
    return begin, end


def load_peer(path: str) -> Any:
    """Execute a peer's file as a module; its folder stays off the search path, where it would hide the packages."""
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]
    import numpy as np  # only now: the folder of this file would hide packages

    command, peer = arguments[0], load_peer(arguments[1])
    if command == "convert":
        model, precision, calibration, target = arguments[2:]
        peer.convert(Path(model), precision, np.load(calibration), Path(target))
        return
    runtime = importlib.import_module(peer.RUNTIME)
    if command == "infer":
        source, precision, inputs, outputs = arguments[2:]
        infer = peer.load(runtime, Path(source), precision)
        *warmup, measured = np.load(inputs)
        results = [infer(values).reshape(-1) for values in warmup]
        begin, end = region_marks()
        begin()
        result = infer(measured)
        end()
        np.save(outputs, np.stack([*results, result.reshape(-1)]).astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1:])

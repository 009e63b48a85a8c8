"""Runs one inference of a network by ncnn, marked for counting, after one that fills the caches.

It runs in the emulated machine, by that machine's Python. Options are those of ncnn's own benchmark, weights are zeros
as there. Arguments: library of marks, .param file, width, height, channels, threads, 1 for arithmetic in half
precision where the core has it or 0.
"""

import ctypes
import importlib
import sys
from pathlib import Path

marks_path, param, *numbers = sys.argv[1:]
width, height, channels, threads, half = map(int, numbers)

# Before ncnn, so that its calls of the OpenMP runtime find the marks first.
marks = ctypes.CDLL(marks_path, mode=ctypes.RTLD_GLOBAL)
(runtime,) = [path for folder in sys.path for path in Path(folder, "ncnn.libs").glob("libgomp-*.so*")]
entry = ctypes.cast(ctypes.CDLL(str(runtime)).GOMP_parallel, ctypes.c_void_p)
ctypes.c_void_p.in_dll(marks, "gomp_parallel").value = entry.value

ncnn = importlib.import_module("ncnn")
net = ncnn.Net()
net.opt.lightmode = True
net.opt.num_threads = threads
net.opt.use_vulkan_compute = False
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = bool(half)
if net.load_param(param) or net.load_model(ncnn.DataReaderFromEmpty()):
    sys.exit(f"ncnn cannot load {param}")
image = ncnn.Mat(width, height, channels)
image.fill(0.01)


def infer() -> int:
    """One inference; the number of outputs of the network, which is enough to see that it ran."""
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], image)
    results = [extractor.extract(name) for name in net.output_names()]
    if any(code for code, _ in results):
        sys.exit(f"ncnn cannot run {param}")
    return len(results)


infer()
marks.begin_region()
outputs = infer()
marks.end_region()
print(outputs)

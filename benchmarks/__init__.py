"""Proves and measures bundles.

harness.py      verify a bundle against ONNX Runtime, count what an inference costs under QEMU
regression.py   compare two counts: a gate for a network's continuous integration
predicting.py   milliseconds on the cores of a named chip
calibrating.py  fit the predictions to published measurements, and find their error
measure.py      time a bundle on a device, with a verdict
inference.py    run a bundle on inputs of any kind, here or on a device
searching.py    what each layer of a bundle costs, for the search for mixed precision
tensors.py      what sparrow_run reads and writes, as arrays
result_files.py what these give, as dataclasses and as JSON; results/ holds those that the README quotes
reports/        HTML pages about results, and the demo's
runners/        where programs run: QEMU, adb, ssh, this machine, an aarch64 userland
predict/        cores, chips, pipeline models, caches, placing of threads
calibration/    ncnn's networks, their counts, and the fit
peers/          other runtimes, counted in the same way
suites/         micro-kernels by themselves, and networks of random weights
"""

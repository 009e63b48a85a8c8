"""Predicts what a program costs on a named core or SoC from what it executed under QEMU.

``blocks`` has LLVM's pipeline models price the executed blocks, and ``work`` adds the misses of the simulated caches;
``predict`` turns both into cycles of one core, and ``octa_core`` into milliseconds on several cores of a SoC. What is
known stands in data files: facts of each core in ``cores`` and of each SoC in ``socs``, with their source, and the
figures that were fitted to measurements in ``calibration.json``, with their error.
"""

"""Predicts the cycles of a program on a named core from what it executed under QEMU.

``blocks`` has LLVM's pipeline models price the executed blocks, ``cores`` holds one data file a core, with its source,
and ``predict`` puts both and the misses of the simulated caches together.
"""

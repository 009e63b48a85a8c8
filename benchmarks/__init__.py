"""Proves and measures bundles.

harness.py   verify a bundle against ONNX Runtime, count what an inference costs
report.py    the report of the demo: one HTML file, one table on the terminal
runners/     where a bundle runs: QEMU
"""

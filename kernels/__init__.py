"""Sparrow's compute kernels: packed weight formats, C sources and their registry.

Imports numpy and nothing else of Sparrow, so that every other package can build on it.
"""

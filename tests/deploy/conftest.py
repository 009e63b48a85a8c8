"""Fixtures of the compiler's tests."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Write a model to a file of this test's own."""

    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / "network.onnx"
        onnx.save(model, path)
        return path

    return save


@pytest.fixture(scope="session")
def residual_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``residual_network`` for cortex-a76, compiled once; tests do not change it."""
    from sparrow.deploy.compiler import compile_model

    from .networks import residual_network

    folder = tmp_path_factory.mktemp("compiled")
    onnx.save(residual_network(), folder / "network.onnx")
    return compile_model(folder / "network.onnx", folder / "bundle", target="cortex-a76").path

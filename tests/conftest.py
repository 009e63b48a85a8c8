"""Fixtures and guards shared by every test."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run when ``sparrow`` resolves to another checkout: the tests would test the wrong code."""
    import sparrow.kernels

    found = Path(sparrow.kernels.__file__).resolve()
    if REPOSITORY not in found.parents:
        raise pytest.UsageError(f"sparrow.kernels is {found}, not in {REPOSITORY}; run: pip install -e .")

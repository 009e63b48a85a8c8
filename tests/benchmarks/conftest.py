"""What the tests that run programs share."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks import harness
from sparrow.benchmarks.runners import qemu


@pytest.fixture(params=["plugin", "execution log"])
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with QEMU's plugin, and without. Ubuntu 24.04 and Debian 13 build QEMU without plugins."""
    found = qemu.find_qemu()
    if request.param == "plugin" and not found.plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")
    for module in (qemu, harness):
        monkeypatch.setattr(module, "find_qemu", lambda: replace(found, plugins=request.param == "plugin"))
    return str(request.param)


@pytest.fixture
def assert_gone() -> Callable[[Path], None]:
    """A function that fails if a process still runs a program five seconds later: a killed one needs a moment."""

    def running(program: Path) -> list[bytes]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(program).encode() in (text := entry.read_bytes()):
                    found.append(text)
        return found

    def check(program: Path) -> None:
        deadline = time.monotonic() + 5
        while running(program) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running(program) == []

    return check

"""This machine as a device; elsewhere than on aarch64 a shell script stands for a program, and uname says so."""

import platform
import subprocess
from pathlib import Path

import pytest

from sparrow.benchmarks.runners.device import CommandResult
from sparrow.benchmarks.runners.local import LocalDevice, open_local
from sparrow.kernels.errors import SparrowError


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalDevice:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    return open_local()


@pytest.mark.parametrize("machine", ["x86_64", "armv7l"])
def test_only_an_aarch64_machine_is_taken(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SparrowError, match=f"this machine is linux on {machine}\n.*aarch64.*\n.*--runner qemu"):
        open_local()


def test_programs_and_files(device, tmp_path):
    (tmp_path / "program").write_text('#!/bin/sh\necho "[$1]"\necho complaint >&2\nexit 5\n')
    assert device.push({"x/program": tmp_path / "program"}) == ("x/program",)
    assert device.push({"x/program": tmp_path / "program"}) == ()
    assert device.run("x/program", ["a  b"]) == CommandResult(5, "[a  b]\n", "complaint\n")
    device.pull("x/program", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "program").read_bytes()
    with pytest.raises(SparrowError, match=r"cannot copy .*No such file"):
        device.pull("missing", tmp_path / "never")
    device.remove()
    assert not (tmp_path / "cache" / "local-device").exists()


def test_it_says_what_this_machine_is(device):
    found = device.describe()
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    assert (found.runner, found.name, found.abi) == ("local", "", "arm64-v8a" if machine == "aarch64" else machine)
    assert found.system == f"Linux {platform.release()}"
    assert len(found.cores) >= 1 and found.place("all", 1)[0] in [core.number for core in found.cores]
    readings = device.readings()
    assert all(-50 < celsius < 200 for celsius in readings.celsius.values())


def test_a_program_killed_by_a_signal_and_a_folder_that_cannot_be_made(device, tmp_path):
    (tmp_path / "program").write_text("#!/bin/sh\nkill -11 $$\n")
    device.push({"program": tmp_path / "program"})
    with pytest.raises(SparrowError, match="program was ended by SIGSEGV on this machine"):
        device.run("program")
    device.remove()
    Path(device.folder).parent.mkdir(exist_ok=True)
    Path(device.folder).write_text("in the way")
    with pytest.raises(SparrowError, match="this machine cannot make the folder"):
        device.push({"program": tmp_path / "program"})

"""What every device can, on a pretend phone, on one before Android 7, and on a pretend board."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks.runners.adb import open_adb
from sparrow.benchmarks.runners.device import CommandResult, Device, DeviceCore, DeviceDescription
from sparrow.benchmarks.runners.ssh import SshDevice
from sparrow.kernels.errors import SparrowError

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(params=["phone", "old phone", "board"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(kind: str, request: pytest.FixtureRequest) -> Device:
    if kind == "board":
        board = request.getfixturevalue("board")
        return SshDevice(board.host, board.key)
    make_phone = request.getfixturevalue("make_phone")
    return open_adb(make_phone(features=()) if kind == "old phone" else make_phone())


@pytest.mark.qemu
def test_it_says_what_it_is_and_how_warm(device: Device, kind: str) -> None:
    found = device.describe()
    found.require_abi()
    assert (found.runner, found.name) == (device.runner, device.name)
    if kind == "board":
        assert found.system == f"Linux {os.uname().release}"
    else:
        assert (found.model, found.soc, found.system) == ("Pretend Phone 5", "SM8150", "Android 13")
    assert found.features == ("fp", "asimd", "asimddp")
    assert [core.number for core in found.cores] == CPUS
    assert found.cores[-1] == DeviceCore(CPUS[-1], "0xd0b", 2_400_000, 1024)
    assert found.place("big", 1) == (CPUS[-1],)
    readings = device.readings()
    assert readings.celsius == {"0 cpu-0-0": 41.2, "1 battery": 30.5}
    last = readings.cores[-1]
    assert (last.number, last.khz, last.limit_khz, last.governor) == (CPUS[-1], 300_000, 2_400_000, "schedutil")


@pytest.mark.qemu
def test_programs_and_files_go_there_and_back(device: Device, kind: str, probe: Path, tmp_path: Path) -> None:
    content = bytes(range(256)) * 300 + b"\r\n\n\r"
    (tmp_path / "data").write_bytes(content)
    files = {"a folder/it's $HOME": tmp_path / "data", "a folder/probe": probe}
    assert device.push(files) == tuple(files)
    assert device.push(files) == ()
    device.pull("a folder/it's $HOME", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content

    # Exit codes, both outputs, and arguments that a shell would take apart.
    arguments = ["two words", "$HOME `id` *", 'it\'s "quoted"', "", "line\nline"]
    printed = "".join(f"[{text}]" for text in arguments)
    result = device.run("a folder/probe", ["7", *arguments])
    if kind == "old phone":
        assert (result.exit_code, result.stderr) == (7, "")
        assert sorted(result.stdout.replace("complaint", "")) == sorted(printed) and "complaint" in result.stdout
    else:
        assert result == CommandResult(7, printed, "complaint")

    # What changed, here or there, is sent again, and nothing else.
    (tmp_path / "data").write_bytes(content[::-1])
    assert device.push(files) == ("a folder/it's $HOME",)
    device.shell(f"cd {device.folder} && echo cut >'a folder/probe'")
    assert device.push(files) == ("a folder/probe",)
    assert device.run("a folder/probe", ["0"]).exit_code == 0

    with pytest.raises(SparrowError, match=r"No such file|does not exist"):
        device.pull("missing", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    device.remove("a folder")
    assert device.shell(f"ls {device.folder}").stdout.split() == []
    device.remove()
    assert device.shell(f"ls {device.folder}").exit_code != 0


@pytest.mark.qemu
def test_a_program_ended_by_a_signal(device: Device, probe: Path) -> None:
    device.push({"probe": probe})
    with pytest.raises(SparrowError, match=r"(?s)probe was ended by SIGILL on device .*complaint") as error:
        device.run("probe", ["raise", "4"])
    assert "another --target" in error.value.next_step
    with pytest.raises(SparrowError, match="ended by SIGKILL") as error:
        device.run("probe", ["raise", "9"])
    assert "out of memory" in error.value.next_step
    device.remove()


@pytest.mark.qemu
def test_a_program_that_hangs_is_killed_there(
    device: Device, kind: str, probe: Path, assert_gone: Callable[[Path], None]
) -> None:
    name = f"hanging-{os.getpid()}-{kind.replace(' ', '-')}"
    device.push({name: probe})
    with pytest.raises(SparrowError, match=f"did not run {name} to its end within 1.5 s"):
        device.run(name, ["hang"], timeout=1.5)
    assert_gone(Path(name))
    device.remove()


def describe(*cores: tuple[int, int | None, int | None]) -> DeviceDescription:
    listed = tuple(DeviceCore(number, "", khz, capacity) for number, khz, capacity in cores)
    return DeviceDescription("adb", "S1", "", "", "Android 13", "arm64-v8a", listed, ())


THREE_KINDS = describe(*[(number, 1_800_000, 380) for number in range(4)],
                       *[(number, 2_400_000, 860) for number in range(4, 7)], (7, 2_840_000, 1024))  # fmt: skip


@pytest.mark.parametrize(
    ("affinity", "threads", "cpus"),
    [("big", 1, (7,)), ("big", 3, (7, 4, 5)), ("little", 2, (0, 1)), ("all", 6, (7, 4, 5, 6, 0, 1)),
     ("0,1,4", 3, (4, 0, 1)), ("0,1,4", 1, (4,))],
)  # fmt: skip
def test_threads_get_the_fastest_of_the_cores_asked_for(affinity, threads, cpus):
    assert THREE_KINDS.place(affinity, threads) == cpus


def test_kinds_of_cores_are_told_by_frequency_or_not_at_all():
    by_frequency = describe((0, 1_000_000, 1024), (1, 2_000_000, None))
    assert (by_frequency.place("big", 1), by_frequency.place("little", 1)) == ((1,), (0,))
    alike = describe((0, None, None), (2, 2_000_000, None))
    assert alike.place("big", 2) == alike.place("little", 2) == (0, 2)


@pytest.mark.parametrize(
    ("affinity", "threads", "message"),
    [("big", 5, r"5 threads on 4 cores \(affinity big\)\n  expected: 1 to 4 threads"),
     ("all", 0, "0 threads"), ("8", 1, "affinity '8'\n.*online are 0,1,2,3,4,5,6,7"), ("1,1", 1, "affinity '1,1'"),
     ("huge", 1, "affinity 'huge'"), ("", 1, "affinity ''")],
)  # fmt: skip
def test_cores_that_are_not_there_are_refused(affinity, threads, message):
    with pytest.raises(SparrowError, match=message):
        THREE_KINDS.place(affinity, threads)


@pytest.mark.parametrize("abi", ["armeabi-v7a", "x86_64", ""])
def test_only_64_bit_arm_is_taken(abi):
    THREE_KINDS.require_abi()
    with pytest.raises(SparrowError, match=f"device S1 .* runs {abi or 'unknown'} programs"):
        replace(THREE_KINDS, abi=abi).require_abi()

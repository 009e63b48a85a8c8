"""Phones that are not there, not allowed, full or gone, with the real adb; and a measurement from end to end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparrow.benchmarks.measure import Measurement, measure, measure_all
from sparrow.benchmarks.runners.adb import AdbDevice, list_adb_devices, open_adb, open_all_adb
from sparrow.kernels.errors import SparrowError

from .conftest import PROPERTIES, MakePhone, write_cores
from .runner_bundle import build_bundle

pytestmark = pytest.mark.qemu

MEGABYTE = 1 << 20


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    """50 MB of noise."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(MEGABYTE) * 50)
    return path


def test_adb_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparrowError, match=r"adb not found\n.*\n.*apt-get install adb"):
        open_adb()


def test_no_device(own_adb: None) -> None:
    for take in (open_adb, open_all_adb, lambda: open_adb("S1")):
        with pytest.raises(SparrowError, match=r"adb sees no device\n.*USB debugging"):
            take()


@pytest.mark.parametrize(
    ("state", "listed", "message"),
    [("unauthorized", "unauthorized", "does not trust this computer yet .*\n.*tap Allow"),
     ("mute", "offline", "does not answer .*\n.*adb reconnect")],
)  # fmt: skip
def test_a_device_that_cannot_be_used(make_phone: MakePhone, state: str, listed: str, message: str) -> None:
    serial = make_phone(state=state)
    assert [(entry.serial, entry.state) for entry in list_adb_devices()] == [(serial, listed)]
    for take in (open_adb, open_all_adb, lambda: open_adb(serial)):
        with pytest.raises(SparrowError, match=f"device {serial} {message}"):
            take()


def test_two_devices_need_a_choice(make_phone: MakePhone, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = make_phone(), make_phone(), make_phone(state="unauthorized")
    with pytest.raises(SparrowError, match="adb sees 3 devices: ") as error:
        open_adb()
    assert all(f"{serial} (" in error.value.got for serial in (first, second, third))
    assert open_adb(second).name == second
    assert {device.name for device in open_all_adb()} == {first, second}
    assert f"device {third} is left out: adb says unauthorized" in caplog.text
    with pytest.raises(SparrowError, match=r"no device '127.0.0.1:1', but .*\n.*did you mean.*\n.*adb connect"):
        open_adb("127.0.0.1:1")


def test_50_megabytes_are_sent_once(make_phone: MakePhone, big_file: Path) -> None:
    device = open_adb(make_phone())
    assert device.push({"big": big_file}) == ("big",)
    assert device.push({"big": big_file}) == ()
    assert str(50 * MEGABYTE) in device.shell(f"ls -l {device.folder}/big").stdout.split()


def test_a_device_that_vanishes_half_way_through_a_push(make_phone: MakePhone, big_file: Path) -> None:
    serial = make_phone(vanish_after_bytes=20 * MEGABYTE)
    with pytest.raises(SparrowError, match=f"device {serial} (is gone|does not answer): it could not receive big"):
        AdbDevice(serial).push({"big": big_file})


@pytest.mark.parametrize("features", [("shell_v2",), ()])
def test_a_device_that_vanishes_in_the_middle_of_a_run(
    make_phone: MakePhone, probe: Path, features: tuple[str, ...]
) -> None:
    serial = make_phone(vanish_on="probe hang", features=features)
    device = open_adb(serial)
    device.push({"probe": probe})
    with pytest.raises(SparrowError, match=f"device {serial} (is gone|does not answer): it could not run probe"):
        device.run("probe", ["hang"], timeout=60)


def test_a_full_device_keeps_nothing_of_the_file(make_phone: MakePhone, big_file: Path) -> None:
    device = open_adb(make_phone(full=8 * MEGABYTE))
    with pytest.raises(SparrowError, match=r"is full: it could not receive big\n.*free some space"):
        device.push({"big": big_file})
    assert device.shell(f"ls {device.folder}").stdout.split() == []


def test_a_read_only_device_is_named(make_phone: MakePhone, probe: Path) -> None:
    serial = make_phone(read_only=True)
    with pytest.raises(SparrowError, match=f"storage of device {serial} is read-only: it could not make(?s:.*)restart"):
        open_adb(serial).push({"probe": probe})


def test_a_32_bit_phone_is_refused_before_anything_is_sent(make_phone: MakePhone, bundle: Path) -> None:
    old = {**PROPERTIES, "ro.product.cpu.abilist": "", "ro.product.cpu.abi": "armeabi-v7a"}
    device = open_adb(make_phone(properties=old))
    with pytest.raises(SparrowError, match=r"\(Pretend Phone 5\) runs armeabi-v7a programs"):
        measure(bundle, device)
    assert device.shell(f"ls {device.folder}").exit_code != 0


def test_an_octa_core_phone_is_understood(make_phone: MakePhone, tmp_path: Path) -> None:
    clusters = [([0, 1, 2, 3], 1_785_600, 380, "0xd05"), ([4, 5, 6], 2_419_200, 871, "0xd0d"),
                ([7], 2_841_600, 1024, "0xd0d")]  # fmt: skip
    found = open_adb(make_phone(fakes=write_cores(tmp_path / "fakes", clusters))).describe()
    assert [(core.number, core.part, core.max_khz, core.capacity) for core in found.cores][3:5] == [
        (3, "0xd05", 1_785_600, 380), (4, "0xd0d", 2_419_200, 871)
    ]  # fmt: skip
    assert found.place("big", 4) == (7, 4, 5, 6) and found.place("little", 4) == (0, 1, 2, 3)


def test_two_phones_are_measured_side_by_side(
    make_phone: MakePhone, bundle: Path, assert_gone: Callable[[Path], None]
) -> None:
    serials = [make_phone(), make_phone(features=())]
    devices = [open_adb(serial) for serial in serials]
    found = measure_all(bundle, devices, repeat=12, min_seconds=0, profile=True)
    for serial, result in zip(serials, found, strict=True):
        assert isinstance(result, Measurement), result
        assert (result.device.name, result.times.count, result.cpus) == (serial, 12, (max(os.sched_getaffinity(0)),))
        assert result.outputs.ok and result.outputs.exactly_equal == 1
        assert result.before.cores[-1].governor == "schedutil" and result.after.celsius["0 cpu-0-0"] == 41.2
        assert [step.name for step in result.steps] == ["copy", "twice"]
    for device in devices:
        assert device.shell(f"ls {device.folder}/doubling").stdout.split() == ["sparrow_run", "sparrow_run.sha256"]
        device.remove()
    assert_gone(Path("doubling/sparrow_run"))

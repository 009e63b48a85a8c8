"""``sparrow devices``, ``run`` and ``bench`` as they are typed, with pretend phones and a pretend board."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sparrow.benchmarks.runners.adb import open_adb
from sparrow.benchmarks.runners.device import Device, DeviceCore, user_folder
from sparrow.benchmarks.runners.discovery import find_devices, summarize_cores
from sparrow.benchmarks.runners.ssh import SshDevice
from sparrow.deploy.cli.main import group
from sparrow.kernels.errors import SparrowError

from .conftest import PROPERTIES, Board, MakePhone, write_cores
from .runner_bundle import build_bundle

pytestmark = pytest.mark.qemu

PLAIN = ["--pixel-mean", "0", "--pixel-deviation", "1"]
AWKWARD = "it's a \"cat\" $HOME `id`\nKätzchen 猫.png"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_bundle(tmp_path_factory.mktemp("commands"))
    return built.rename(built.parent / "my bundle's \"ü\"\n$x")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / AWKWARD
    Image.fromarray(np.array([[1, 5, 3], [6, 2, 4]], np.uint8)).save(path)
    return path


def sparrow(*arguments: object) -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)), standalone_mode=False)


def test_phones_and_hosts_are_listed_with_what_they_are(make_phone: MakePhone, board: Board, tmp_path: Path) -> None:
    clusters = [([0, 1, 2, 3], 1_785_600, 380, "0xd05"), ([4, 5, 6], 2_419_200, 871, "0xd41"),
                ([7], 2_841_600, 1024, "0xd44")]  # fmt: skip
    phone = make_phone(fakes=write_cores(tmp_path / "fakes", clusters))
    closed = make_phone(state="unauthorized")
    old = make_phone(properties={**PROPERTIES, "ro.product.cpu.abilist": "", "ro.product.cpu.abi": "armeabi-v7a"})
    hosts = ["--host", board.host, "--host", "nobody@127.0.0.1:1", "--key", board.key]
    result = sparrow("devices", *hosts)
    assert result.return_value == 0, result.output
    assert f"adb   {phone}  Pretend Phone 5, SM8150, Android 13, arm64-v8a\n" in result.stdout
    assert "cores: 1 x Cortex-X1 2.84 GHz, 3 x Cortex-A78 2.42 GHz, 4 x Cortex-A55 1.79 GHz\n" in result.stdout
    assert "instruction sets: neon, dotprod\n" in result.stdout
    assert f"ssh   {board.host}  Linux {os.uname().release}, arm64-v8a\n" in result.stdout
    assert f"cannot be used: device {closed} does not trust this computer" in result.stdout
    assert "next: unlock its screen and tap Allow" in result.stdout
    assert "cannot be used: it runs armeabi-v7a programs" in result.stdout
    assert "nothing listens there" in result.stdout

    rows = {row["name"]: row for row in json.loads(sparrow("devices", *hosts, "--json").stdout)}
    assert set(rows) == {phone, closed, old, board.host, "nobody@127.0.0.1:1"}
    assert rows[phone]["instruction_sets"] == ["neon", "dotprod"] and not rows[phone]["problem"]
    assert len(rows[phone]["description"]["cores"]) == 8
    assert rows[closed]["description"] is None and rows[old]["description"]["abi"] == "armeabi-v7a"


def test_no_phone_and_no_adb_are_said_plainly(
    own_adb: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    result = sparrow("devices")
    assert result.return_value == 1 and "adb sees no phone" in result.stdout and "USB debugging" in result.stdout
    monkeypatch.setenv("PATH", str(tmp_path))
    result = sparrow("devices")
    assert result.return_value == 1 and "adb not found" in result.stdout and "apt-get install adb" in result.stdout


def test_a_phone_that_vanishes_while_it_is_asked(make_phone: MakePhone) -> None:
    serial = make_phone(vanish_on="cpuinfo", vanish_seconds=0)
    (found,) = find_devices()
    assert found.description is None and f"device {serial} " in found.problem and found.next_step


@pytest.mark.parametrize("kind", ["phone", "board"])
def test_an_image_is_run_there(kind: str, request: pytest.FixtureRequest, bundle: Path, image: Path) -> None:
    if kind == "board":
        board = request.getfixturevalue("board")
        where, name = ["--host", board.host, "--key", board.key], f"ssh {board.host}"
    else:
        serial = request.getfixturevalue("make_phone")()
        where, name = ["--device", serial], f"adb {serial}"
    for _ in range(2):  # the second time the executable is there already
        result = sparrow("run", bundle, "--input", image, "--input", image, *where, *PLAIN, "--top", 1, "--threads", 2)
        assert result.exit_code == 0, result.output
        title, best, *rest = result.stdout.splitlines()
        assert title == f"{str(image).replace(chr(10), '?')}: doubling on {name}"
        assert best.split() == ["1", "86.47%", "class", "3", "(score", "12.0000)"] and rest == [title, best]
    if kind != "board":
        device = open_adb(serial)
        assert device.shell(f"ls {device.folder}/doubling").stdout.split() == ["sparrow_run", "sparrow_run.sha256"]


@pytest.mark.parametrize("kind", ["phone", "board"])
def test_a_file_keeps_its_name_there(kind: str, request: pytest.FixtureRequest, image: Path, tmp_path: Path) -> None:
    device: Device
    if kind == "board":
        board = request.getfixturevalue("board")
        device = SshDevice(board.host, board.key)
    else:
        device = open_adb(request.getfixturevalue("make_phone")())
    name = f"in, a folder/{AWKWARD}"
    assert device.push({name: image}) == (name,)
    assert device.push({name: image}) == ()
    device.pull(name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    device.remove(name)
    assert device.push({name: image}) == (name,)


def test_a_run_that_fails_there_is_cleaned_up(make_phone: MakePhone, bundle: Path, tmp_path: Path) -> None:
    device = open_adb(make_phone())
    np.full(6, -75, np.float32).tofile(tmp_path / "fail.raw")
    result = sparrow("run", bundle, "--input", tmp_path / "fail.raw", "--device", device.name)
    assert isinstance(result.exception, SparrowError) and f"exit code 1 on {device.name}" in str(result.exception)
    assert device.shell(f"ls {device.folder}/doubling").stdout.split() == ["sparrow_run", "sparrow_run.sha256"]


def test_a_32_bit_phone_gets_nothing(make_phone: MakePhone, bundle: Path, image: Path) -> None:
    serial = make_phone(properties={**PROPERTIES, "ro.product.cpu.abilist": "armeabi-v7a,armeabi"})
    result = sparrow("run", bundle, "--input", image, "--device", serial, *PLAIN)
    assert isinstance(result.exception, SparrowError) and "runs armeabi-v7a programs" in str(result.exception)
    assert open_adb(serial).shell(f"ls {user_folder('/data/local/tmp/sparrow')}").exit_code != 0


def test_several_phones_are_measured_in_one_table(make_phone: MakePhone, bundle: Path, tmp_path: Path) -> None:
    serials = [make_phone(), make_phone(), make_phone(state="unauthorized")]
    measured = ["--repeat", 12, "--min-seconds", 0, "-o", tmp_path / "results"]
    result = sparrow("bench", bundle, "--runner", "adb", "--device", "all", *measured)
    # The verdict depends on what else this machine does.
    assert result.exception is None or getattr(result.exception, "exit_code", 0) == 3, result.exception
    *_, header, first, second = result.stdout.splitlines()
    assert header.split() == ["device", "threads", "p50", "ms", "p90", "ms", "min", "ms", "verdict"]
    assert [line.split()[0] for line in (first, second)] == sorted(serials[:2], key=result.stdout.index)
    assert all(re.fullmatch(r"\d+\.\d{3}", part) for line in (first, second) for part in line.split()[-4:-1])
    assert serials[2] not in result.stdout
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_the_project_file_names_a_phone(
    make_phone: MakePhone, bundle: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = make_phone()
    make_phone()
    (tmp_path / "sparrow.yaml").write_text(f"run: {{device: '{serial}', pixel-mean: 0, pixel-deviation: 1}}")
    monkeypatch.chdir(tmp_path)
    assert f"on adb {serial}" in sparrow("run", bundle, "--input", image).stdout
    assert "on QEMU" in sparrow("run", bundle, "--input", image, "--runner", "qemu").stdout
    assert isinstance(sparrow("run", bundle, "--input", image, "--host", "a b").exception, SparrowError)
    assert isinstance(sparrow("run", bundle, "--input", image, "--runner", "qemu", "--host", "h").exception,
                      click.UsageError)  # fmt: skip


@pytest.mark.parametrize(
    ("where", "number"),
    [("qemu", signal.SIGINT), ("qemu", signal.SIGTERM), ("qemu", signal.SIGHUP), ("phone", signal.SIGINT)],
)
def test_interrupted_it_leaves_nothing(
    where: str, number: int, bundle: Path, tmp_path: Path, request: pytest.FixtureRequest,
    assert_gone: Callable[[Path], None],
) -> None:  # fmt: skip
    scratch, work = tmp_path / "scratch", tmp_path / "work"
    scratch.mkdir()
    work.mkdir()
    np.full(6, -95, np.float32).tofile(work / "hang.raw")
    arguments = ["run", str(bundle), "--input", "hang.raw", "-o", "out.npz"]
    serial = request.getfixturevalue("make_phone")() if where == "phone" else ""
    if serial:
        arguments += ["--device", serial]
    command = [sys.executable, "-c", "from sparrow.deploy.cli import main; main()", *arguments]
    # A shell starts what it runs in the background with the signal ignored, and children inherit that.
    process = subprocess.Popen(command, cwd=work, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE,
                               text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))  # fmt: skip
    # The output is opened before the network runs, and hangs.
    assert wait_until(
        lambda: list(scratch.glob("sparrow-run-*/output")) if where == "qemu" else "output" in open_adb(serial).shell(
            f"ls {user_folder('/data/local/tmp/sparrow')}/doubling/run-*").stdout
    )  # fmt: skip
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else 128 + number), stderr
    assert "Traceback" not in stderr and ("interrupted" in stderr) == (number == signal.SIGINT)
    assert list(scratch.iterdir()) == [] and [path.name for path in work.iterdir()] == ["hang.raw"]
    assert_gone(bundle / "sparrow_run")
    if serial:
        device = open_adb(serial)
        assert device.shell(f"ls {device.folder}/doubling").stdout.split() == ["sparrow_run", "sparrow_run.sha256"]
        assert_gone(Path("doubling/sparrow_run"))


def wait_until(happened: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 90
    while not (done := bool(happened())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return done


def test_cores_are_summed_up_by_kind():
    cores = [DeviceCore(0, "0xd05", 1_800_000, None), DeviceCore(1, "0xd05", 1_800_000, None),
             DeviceCore(2, "0xfff", None, None), DeviceCore(3, "", None, None)]  # fmt: skip
    assert summarize_cores(cores) == "2 x Cortex-A55 1.80 GHz, 1 x core of part 0xfff, 1 x core"

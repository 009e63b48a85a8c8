"""A whole emulated machine of four little and four big cores: its topology, its shell, and threads bound to its cores.

It boots once for all tests, in seconds of computing, where QEMU's system emulation and a kernel can be had.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparrow.benchmarks.measure import verify_on_device
from sparrow.benchmarks.runners import qemu_system
from sparrow.benchmarks.runners.qemu_system import CAPACITIES, QemuSystemMachine, with_capacities
from sparrow.deploy.bundle import RUNNER
from sparrow.kernels.errors import SparrowError

from .runner_bundle import SHAPE, build_bundle

# It shares this machine's cores with whatever else runs here.
SECONDS = 300


def device_tree(cores: int) -> bytes:
    """Nodes ``/``, ``cpus`` and ``cpu@N`` with a property ``reg``, as a flattened device tree."""
    begin, end, reg = struct.pack(">I", 1), struct.pack(">I", 2), struct.pack(">4I", 3, 4, 0, 7)
    nodes = b"".join(begin + f"cpu@{core}".encode().ljust(8, b"\0") + reg + end for core in range(cores))
    structure = begin + bytes(4) + begin + b"cpus\0\0\0\0" + nodes + end + end + struct.pack(">I", 9)
    names = b"reg\0"
    sizes = [64 + len(structure) + len(names) + 1000, 64, 64 + len(structure), 40, 17, 16, 0, len(names)]
    header = struct.pack(">10I", 0xD00DFEED, *sizes, len(structure))
    return header + bytes(24) + structure + names + bytes(1000)


def test_each_core_gets_its_capacity_in_the_device_tree() -> None:
    tree = with_capacities(device_tree(3), (100, 200, 1024))
    magic, total, structure, strings, reserved, *_, strings_size, structure_size = struct.unpack_from(">10I", tree)
    assert (magic, total, reserved) == (0xD00DFEED, len(tree), 40)
    assert tree[strings : strings + strings_size] == b"reg\0capacity-dmips-mhz\0"
    tokens = tree[structure : structure + structure_size]
    for core, capacity in enumerate((100, 200, 1024)):
        at = tokens.index(f"cpu@{core}".encode()) + 8
        assert tokens[at : at + 16] == struct.pack(">4I", 3, 4, 4, capacity)
    with pytest.raises(SparrowError, match="a device tree with 3 cores"):
        with_capacities(device_tree(3), (1024,) * 8)


def test_a_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_system.shutil, "which", lambda name: None)
    with pytest.raises(SparrowError, match="qemu-system-aarch64 is not installed") as caught:
        QemuSystemMachine("cortex-a76")
    assert caught.value.next_step.startswith("apt-get install qemu-system-arm")


def test_an_unknown_core_lists_near_names() -> None:
    with pytest.raises(SparrowError, match="cortex-a77") as caught:
        QemuSystemMachine("cortex-a77")
    assert "cortex-a76" in caught.value.expected


@pytest.fixture(scope="module")
def machine() -> Iterator[QemuSystemMachine]:
    try:
        prepared = QemuSystemMachine("cortex-a76")
    except SparrowError as error:
        pytest.skip(f"no whole machine: {error.got.splitlines()[0]}")
    with prepared as booted:
        yield booted


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.qemu
def test_big_and_little_cores_are_told_apart(machine: QemuSystemMachine) -> None:
    found = machine.describe()
    found.require_abi()
    assert found.runner == "qemu-system" and found.system.startswith("Linux ")
    assert tuple(core.capacity for core in found.cores) == CAPACITIES
    assert {"asimddp", "fphp"} <= set(found.features) and "i8mm" not in found.features
    assert found.place("big", 4) == (4, 5, 6, 7)
    assert found.place("little", 2) == (0, 1)
    assert found.place("all", 8) == (4, 5, 6, 7, 0, 1, 2, 3)


@pytest.mark.qemu
def test_the_shell_keeps_output_errors_codes_and_odd_names_apart(machine: QemuSystemMachine, tmp_path: Path) -> None:
    result = machine.shell("echo out; echo err >&2; exit 7")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n")
    source, name = tmp_path / "source", "a 'b' \"c\" $d; e"
    source.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    assert machine.push({name: source}) == (name,)
    assert machine.push({name: source}) == ()
    machine.pull(name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    machine.remove(name)


@pytest.mark.qemu
@pytest.mark.parametrize(("threads", "affinity"), [(3, "little"), (8, "all")])
def test_a_bundle_is_right_on_any_number_of_threads(
    machine: QemuSystemMachine, bundle: Path, threads: int, affinity: str
) -> None:
    images = np.random.default_rng(1).uniform(0.1, 1, (3, *SHAPE[1:])).astype(np.float32)
    steps: list[str] = []
    result = verify_on_device(bundle, machine, images, threads=threads, affinity=affinity, timeout=SECONDS,
                              on_progress=steps.append)  # fmt: skip
    assert result.ok and result.exactly_equal == 1
    assert steps[-1].startswith(f"{threads} thread")


@pytest.mark.qemu
def test_each_thread_runs_on_its_core_alone(machine: QemuSystemMachine, bundle: Path, tmp_path: Path) -> None:
    np.ones(6, np.float32).tofile(tmp_path / "input")
    machine.push({RUNNER: bundle / RUNNER, "input": tmp_path / "input"})
    script = (
        f"cd {machine.folder} || exit\n"
        "./sparrow_run --input input --output output --threads 3 --cpus 6,1,4 --min-seconds 1000 & pid=$!\n"
        "for turn in $(seq 600); do\n"
        "  sed -n 's/Cpus_allowed_list:\\t//p' /proc/$pid/task/*/status >lists; grep -q 4 lists && break; sleep 0.1\n"
        "done\nkill -9 $pid; cat lists"
    )
    assert machine.shell(script).stdout.split() == ["6", "1", "4"]


@pytest.mark.qemu
def test_a_core_that_is_offline_is_neither_offered_nor_taken(
    machine: QemuSystemMachine, bundle: Path, tmp_path: Path
) -> None:
    np.ones(6, np.float32).tofile(tmp_path / "input")
    machine.push({RUNNER: bundle / RUNNER, "input": tmp_path / "input"})
    online = "/sys/devices/system/cpu/cpu7/online"
    machine.shell(f"echo 0 >{online}")
    try:
        found = machine.describe()
        assert [core.number for core in found.cores] == list(range(7))
        assert found.place("big", 3) == (4, 5, 6)
        arguments = ["--input", "input", "--output", "output", "--threads", "2", "--cpus", "6,7"]
        result = machine.run(RUNNER, arguments, timeout=SECONDS)
    finally:
        machine.shell(f"echo 1 >{online}")
    assert result.exit_code == 1
    assert "core 7 is not there, is offline, or is closed to this process" in result.stderr


@pytest.mark.qemu
def test_a_program_that_hangs_is_given_up_and_the_machine_goes_on(
    machine: QemuSystemMachine, bundle: Path, tmp_path: Path
) -> None:
    np.full(6, -95, np.float32).tofile(tmp_path / "input")
    machine.push({RUNNER: bundle / RUNNER, "input": tmp_path / "input"})
    with pytest.raises(SparrowError, match="did not run sparrow_run to its end within 10 s"):
        machine.run(RUNNER, ["--input", "input", "--output", "output"], timeout=10)
    processes = machine.shell("cat /proc/[0-9]*/comm").stdout.split()
    assert "init" in processes and RUNNER not in processes


@pytest.mark.qemu
def test_a_machine_that_goes_away_is_told(machine: QemuSystemMachine) -> None:
    """The last of this file, since the machine is gone then."""
    machine._process.kill()
    with pytest.raises(SparrowError, match="the emulated machine could not run a script"):
        machine.shell("true")

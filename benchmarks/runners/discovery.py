"""Finds the phones and boards that can be reached, and asks each what it is."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparrow.benchmarks.runners.adb import list_adb_devices, open_adb
from sparrow.benchmarks.runners.device import ABI, Device, DeviceCore, DeviceDescription
from sparrow.benchmarks.runners.local import open_local
from sparrow.benchmarks.runners.ssh import SshDevice
from sparrow.kernels.errors import SparrowError

# `CPU part` of /proc/cpuinfo -> the core's name. 0x8.. are Qualcomm's names for cores of Arm's.
CORE_NAMES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
    "0x800": "Cortex-A73",
    "0x801": "Cortex-A53",
    "0x802": "Cortex-A75",
    "0x803": "Cortex-A55",
    "0x804": "Cortex-A76",
    "0x805": "Cortex-A55",
}

# Word of the kernel's `Features` line -> the instruction set, of those that Sparrow has kernels for or looks at.
INSTRUCTION_SETS = {"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm"}


@dataclass(frozen=True)
class FoundDevice:
    """A device, whether or not it can be used.

    Attributes:
        runner: ``adb``, ``ssh`` or ``local``.
        name: Serial number, host, or empty for this machine.
        description: What it says of itself; ``None`` if it did not answer.
        problem: Why it cannot be used; empty if it can.
        next_step: What to do about that.
    """

    runner: str
    name: str
    description: DeviceDescription | None
    problem: str = ""
    next_step: str = ""


def find_devices(hosts: Sequence[str] = (), key: Path | None = None) -> tuple[FoundDevice, ...]:
    """Ask all phones that adb lists, the hosts given, and this machine if it is a 64-bit ARM one, at the same time.

    Args:
        hosts: Hosts for ssh, as ``SshDevice`` takes them.
        key: Private key for them.

    Returns:
        What was found: phones, hosts, this machine. If adb is missing or fails, an entry without a name says so.
    """
    openers: list[tuple[str, str, Callable[[], Device]]] = []
    failures = []
    try:
        openers += [("adb", entry.serial, _phone(entry.serial)) for entry in list_adb_devices()]
    except SparrowError as error:
        failures.append(FoundDevice("adb", "", None, error.got, error.next_step))
    openers += [("ssh", host, _host(host, key)) for host in hosts]
    try:
        here = open_local()
        openers.append(("local", "", lambda: here))
    except SparrowError:
        pass  # most machines that Sparrow compiles on are no ARM machines
    taken: list[Device] = []
    with ThreadPoolExecutor(max(len(openers), 1)) as pool:
        running = [pool.submit(_ask, *opener, taken) for opener in openers]
        try:
            return (*failures, *(future.result() for future in running))
        except BaseException:
            # Interrupted: nobody waits any longer for a device that hangs.
            for device in taken:
                device.stop()
            raise


def summarize_cores(cores: Sequence[DeviceCore]) -> str:
    """Cores in one line, the fastest first, such as ``1 x Cortex-A76 2.84 GHz, 4 x Cortex-A55 1.79 GHz``."""
    kinds = Counter((core.max_khz or 0, core.part) for core in cores)
    parts = []
    for (khz, part), count in sorted(kinds.items(), reverse=True):
        name = CORE_NAMES.get(part.lower(), f"core of part {part}" if part else "core")
        parts.append(f"{count} x {name}" + (f" {khz / 1e6:.2f} GHz" if khz else ""))
    return ", ".join(parts)


def instruction_sets(description: DeviceDescription) -> tuple[str, ...]:
    """Of what Sparrow has kernels for, what the device's cores have."""
    return tuple(name for word, name in INSTRUCTION_SETS.items() if word in description.features)


def _phone(serial: str) -> Callable[[], Device]:
    return lambda: open_adb(serial)


def _host(host: str, key: Path | None) -> Callable[[], Device]:
    return lambda: SshDevice(host, key)


def _ask(runner: str, name: str, take: Callable[[], Device], taken: list[Device]) -> FoundDevice:
    try:
        device = take()
        taken.append(device)
        description = device.describe()
    except SparrowError as error:
        return FoundDevice(runner, name, None, error.got, error.next_step)
    if description.abi != ABI:
        return FoundDevice(runner, name, description, f"it runs {description.abi or 'unknown'} programs, not {ABI}",
                           "choose another device; Sparrow compiles for 64-bit ARM alone")  # fmt: skip
    return FoundDevice(runner, name, description)

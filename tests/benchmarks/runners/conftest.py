"""A pretend phone for the real adb, and a pretend board behind the real sshd; both run aarch64 programs under QEMU."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparrow.benchmarks.runners.adb import list_adb_devices
from sparrow.benchmarks.runners.arm_userland import debian_root
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError

HERE = Path(__file__).parent

PROPERTIES = {
    "ro.product.manufacturer": "Pretend",
    "ro.product.model": "Phone 5",
    "ro.soc.model": "SM8150",
    "ro.build.version.release": "13",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a,armeabi",
    "ro.product.cpu.abi": "arm64-v8a",
}

# Makes an adb device: the fields of device_daemon.Phone that differ from the usual, and the folder of its cores.
MakePhone = Callable[..., str]


@dataclass(frozen=True)
class ArmTools:
    """What a pretend device is made of: static aarch64 programs, and the emulator."""

    qemu: str
    busybox: Path
    shell: Path


@pytest.fixture(scope="session")
def arm_tools() -> ArmTools:
    """Debian's busybox and mksh for arm64, fetched once into the cache."""
    qemu = shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("qemu-aarch64 is missing (apt-get install qemu-user)")
    try:
        root = debian_root(("busybox-static", "mksh"))
    except SparrowError as error:
        pytest.skip(f"no busybox and mksh for arm64: {error}")
    return ArmTools(qemu, root / "bin" / "busybox", root / "usr" / "lib" / "klibc" / "bin" / "mksh")


def write_cores(folder: Path, clusters: list[tuple[list[int], int, int, str]]) -> Path:
    """Make up what a kernel tells of its cores.

    Args:
        folder: Where its ``proc`` and ``sys`` are made.
        clusters: Numbers of the cores, their highest kHz, capacity and part.
    """
    numbers = sorted(number for cores, *_ in clusters for number in cores)
    files = {"sys/devices/system/cpu/online": ",".join(map(str, numbers)), "proc/cpuinfo": ""}
    for cores, khz, capacity, part in clusters:
        for number in cores:
            cpu = f"sys/devices/system/cpu/cpu{number}"
            files |= {f"{cpu}/cpu_capacity": str(capacity)}
            files |= {f"{cpu}/cpufreq/{name}": str(khz) for name in ("cpuinfo_max_freq", "scaling_max_freq")}
            files |= {f"{cpu}/cpufreq/scaling_cur_freq": "300000", f"{cpu}/cpufreq/scaling_governor": "schedutil"}
            files["proc/cpuinfo"] += f"processor\t: {number}\nFeatures\t: fp asimd asimddp\nCPU part\t: {part}\n\n"
    for zone, (kind, millidegrees) in enumerate([("cpu-0-0", "41200"), ("battery", "30500")]):
        files |= {f"sys/class/thermal/thermal_zone{zone}/type": kind,
                  f"sys/class/thermal/thermal_zone{zone}/temp": millidegrees}  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.fixture(scope="session")
def real_cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cores that this process may use, the last of them big: programs can be bound to them."""
    *little, big = sorted(os.sched_getaffinity(0))
    clusters = [([big], 2_400_000, 1024, "0xd0b")]
    if little:
        clusters.insert(0, (little, 1_800_000, 400, "0xd05"))
    return write_cores(tmp_path_factory.mktemp("real-cores"), clusters)


@pytest.fixture(scope="session")
def adb_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of the real adb with a server that is not the user's: with a port, a home and keys of its own."""
    adb = shutil.which("adb")
    if adb is None:
        pytest.skip("adb is missing (apt-get install adb)")
    folder = tmp_path_factory.mktemp("adb")
    client = folder / "adb"
    # The highest port at which it looks for emulators: none of the user's.
    client.write_text(f"#!/bin/sh\nexport HOME={folder} ANDROID_ADB_SERVER_PORT={free_port()}\n"
                      f'export ADB_LOCAL_TRANSPORT_MAX_PORT=5554\nunset ANDROID_SERIAL\nexec {adb} "$@"\n')  # fmt: skip
    client.chmod(0o755)
    yield folder
    subprocess.run([client, "kill-server"], capture_output=True, timeout=30, check=False)


@pytest.fixture
def own_adb(adb_client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real adb, without any device yet."""
    monkeypatch.setenv("PATH", f"{adb_client}:{os.environ['PATH']}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start_fixture(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None]]:
    """Start a fixture that ends with ``stack``; return its first line and a function that kills it before."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    line = process.stdout.readline()
    if line.startswith("CANNOT"):
        pytest.skip(f"no pretend device: {line.removeprefix('CANNOT ').strip()}")
    return line, process.kill


@pytest.fixture
def make_phone(own_adb: None, arm_tools: ArmTools, tmp_path: Path, real_cores: Path) -> Iterator[MakePhone]:
    """A function that plugs in a phone and returns its serial number."""
    count = 0
    with ExitStack() as stack:

        def make(*, fakes: Path = real_cores, properties: dict[str, str] = PROPERTIES, **unusual: Any) -> str:
            nonlocal count
            count += 1
            phone = {"root": str(tmp_path / f"phone{count}"), "busybox": str(arm_tools.busybox),
                     "shell": str(arm_tools.shell), "qemu": arm_tools.qemu, "fakes": str(fakes),
                     "properties": properties, **unusual}  # fmt: skip
            line, _ = start_fixture(stack, [sys.executable, str(HERE / "device_daemon.py"), json.dumps(phone)])
            serial = f"127.0.0.1:{line.split()[1]}"
            stack.callback(subprocess.run, ["adb", "disconnect", serial], capture_output=True, timeout=30, check=False)
            # adb waits ten seconds for one that is mute, which is listed meanwhile.
            connecting = subprocess.Popen(["adb", "connect", serial], stdout=subprocess.DEVNULL)
            stack.callback(connecting.wait)
            stack.callback(connecting.kill)
            deadline = time.monotonic() + 20
            while connecting.poll() is None and time.monotonic() < deadline:
                if unusual.get("state") == "mute" and serial in [entry.serial for entry in list_adb_devices()]:
                    break
                time.sleep(0.02)
            return serial

        yield make


@dataclass(frozen=True)
class Board:
    """A host for ssh."""

    host: str
    key: Path
    home: Path
    known_hosts: Path
    kill: Callable[[], None]


@pytest.fixture
def board(arm_tools: ArmTools, tmp_path: Path, real_cores: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board with sshd, known to an ssh that reads no files of the user's."""
    sshd, ssh, keygen = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
                         for name in ("sshd", "ssh", "ssh-keygen"))  # fmt: skip
    if not (sshd and ssh and keygen):
        pytest.skip("ssh or sshd is missing (apt-get install openssh-client openssh-server)")
    home, programs = tmp_path / "home", tmp_path / "home" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(arm_tools.busybox, programs / "busybox")
    shutil.copy(arm_tools.shell, programs / "sh")
    for name in ("cat", "chmod", "kill", "mkdir", "mv", "rm", "sleep", "tr", "uname", "wc"):
        (programs / name).symlink_to("busybox")
    for name in ("host-key", "key"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "key.pub", tmp_path / "authorized")
    port = free_port()
    (tmp_path / "passwd").write_text(f"board:x:1000:1000::{home}:{programs / 'sh'}\n")
    (tmp_path / "sshd.conf").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path / 'host-key'}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized'}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv PATH={programs}\n"
    )
    # ssh takes the user's home from the system, not from the environment: a configuration in its place.
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host-key.pub').read_text()}")
    (tmp_path / "ssh.conf").write_text(f"UserKnownHostsFile {known_hosts}\nGlobalKnownHostsFile /dev/null\n"
                                       "IdentityAgent none\nIdentityFile none\n")  # fmt: skip
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh" / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {tmp_path / "ssh.conf"} "$@"\n')
    (tmp_path / "ssh" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'ssh'}:{os.environ['PATH']}")
    with ExitStack() as stack:
        _, kill = start_fixture(stack, [sys.executable, str(HERE / "arm_sshd.py"), arm_tools.qemu, sshd,
                                        str(tmp_path / "sshd.conf"), str(tmp_path / "passwd"),
                                        str(real_cores)])  # fmt: skip
        wait_for_port(port)
        yield Board(f"board@127.0.0.1:{port}", tmp_path / "key", home, known_hosts, kill)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


PROBE = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **arguments) {
  for (int index = 2; index < count; index++) printf("[%s]", arguments[index]);
  fflush(stdout);
  fputs("complaint", stderr);
  if (!strcmp(arguments[1], "hang")) for (;;) sleep(100);
  if (!strcmp(arguments[1], "raise")) raise(atoi(arguments[2]));
  return atoi(arguments[1]);
}
"""


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aarch64 program: ``CODE TEXT...`` prints and exits, ``raise SIGNAL`` crashes, ``hang`` never ends."""
    folder, toolchain = tmp_path_factory.mktemp("probe"), find_toolchain()
    (folder / "probe.c").write_text(PROBE)
    toolchain.compile(folder / "probe.c", folder / "probe.o", flags=["-D_GNU_SOURCE"])
    toolchain.link_executable([folder / "probe.o"], folder / "probe")
    return folder / "probe"

"""A whole octa-core machine under QEMU's system emulation: a real Linux kernel, eight cores of two speeds.

It shows whether threads, their binding to cores and the reading of a phone's topology work. It times nothing: its
cores are all alike, have no caches and no frequencies, and share the cores of this machine.

The machine is Debian's kernel for arm64 and an initial RAM disk of busybox and one script. It has no disk and no
network. Its only way out is a virtual serial port, at which that script takes other scripts and answers with what they
print.
"""

import hashlib
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NoReturn

from sparrow.benchmarks.runners.arm_userland import debian_root
from sparrow.benchmarks.runners.device import SCRIPT_SECONDS, CommandResult, Device
from sparrow.benchmarks.runners.qemu import cpu_model
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file, cache_dir, make_folder

# Capacity of each core, 1024 for the fastest, as the kernel of a phone with four big and four little cores tells them.
CAPACITIES = (446, 446, 446, 446, 1024, 1024, 1024, 1024)

_PACKAGES = ("linux-image-cloud-arm64", "busybox-static")
# In the order in which they depend on each other.
_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_console")
_MEGABYTES = 1024
# A boot takes 3 seconds on an idle machine.
_PATIENCE_SECONDS = 300.0
_INSTALL = "apt-get install qemu-system-arm   (Debian, Ubuntu)"

# The script answers each request, "TOKEN BYTES BYTES", a script and its input, by "TOKEN CODE BYTES BYTES", what it
# printed and its errors. Each runs in the background, so that a later one can end an earlier one that hangs.
_INIT = rf"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp
for name in {" ".join(_MODULES)}; do insmod /$name.ko; done
export HOME=/tmp PATH=/bin
answer() {{
  sh $1.sh <$1.in >$1.out 2>$1.err
  code=$?
  {{ flock 4; echo; echo $1 $code $(stat -c %s $1.out) $(stat -c %s $1.err); cat $1.out $1.err; }} 4>reply.lock >&3
  rm -f $1.*
}}
receive() {{ : >$1; [ $2 = 0 ] || dd of=$1 bs=$2 count=1 iflag=fullblock <&3 2>/dev/null; }}
mkdir /tmp/requests; cd /tmp/requests
# The port comes after its driver, and can be opened a moment after its node is there. To try would lose what was sent.
until [ -c /dev/vport0p1 ]; do usleep 20000; done; usleep 200000
exec 3<>/dev/vport0p1
while :; do
  if read -r token script input <&3; then
    receive $token.sh $script; receive $token.in $input; answer $token &
  else
    usleep 20000
  fi
done
"""


class QemuSystemMachine(Device):
    """A machine that is booted when the context is entered, and gone when it is left.

    Args:
        cpu: Core or architecture level of all its cores, a key of ``runners.qemu.CPU_MODELS``.
        capacities: What its kernel is told of the speed of each core, 1024 for the fastest.
        on_progress: Called with a text before a download, and before the boot.

    Raises:
        SparrowError: The core is unknown, QEMU is missing, or the kernel cannot be had.
    """

    runner = "qemu-system"

    def __init__(
        self, cpu: str, capacities: tuple[int, ...] = CAPACITIES, *,
        on_progress: Callable[[str], None] = lambda step: None,
    ) -> None:  # fmt: skip
        super().__init__("qemu-system", "/tmp/sparrow")
        self._model, self._capacities, self._on_progress = cpu_model(cpu), capacities, on_progress
        found = shutil.which("qemu-system-aarch64")
        if found is None:
            raise SparrowError("qemu-system-aarch64 is not installed", expected="QEMU 7.2 or newer",
                               next_step=_INSTALL)  # fmt: skip
        self._qemu = found
        self._root = debian_root(_PACKAGES, on_progress)

    def __enter__(self) -> "QemuSystemMachine":
        self._on_progress(f"booting {len(self._capacities)} cores")
        self._scratch = tempfile.TemporaryDirectory(prefix="sparrow-machine-")
        folder = Path(self._scratch.name)
        self._socket, self._console = folder / "shell", folder / "console"
        machine = [
            self._qemu, "-M", "virt,gic-version=3", "-cpu", self._model, "-smp", f"{len(self._capacities)}",
            "-m", f"{_MEGABYTES}", "-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot", "-display", "none",
        ]  # fmt: skip
        if self._model.startswith("max"):
            machine[4] += ",pauth-impdef=on"  # QEMU's own signing of pointers: that of the architecture is slow
        tree = folder / "machine.dtb"
        self._run_qemu([*machine, "-machine", f"dumpdtb={tree}"])
        tree.write_bytes(with_capacities(tree.read_bytes(), self._capacities))
        command = [
            *machine, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-kernel", str(next(self._root.glob("boot/vmlinuz-*"))), "-initrd", str(_initial_disk(self._root)),
            "-dtb", str(tree), "-append", "quiet console=ttyAMA0 rdinit=/init panic=-1",
            "-serial", f"file:{self._console}", "-device", "virtio-serial-device",
            "-chardev", f"socket,id=shell,path={self._socket},server=on,wait=off",
            "-device", "virtserialport,chardev=shell",
        ]  # fmt: skip
        with (folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                                             start_new_session=True)  # fmt: skip
        try:
            while not self._socket.exists() and self._process.poll() is None:
                time.sleep(0.02)
            self.shell("true")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._scratch.cleanup()

    def shell(self, script: str, *, timeout: float = SCRIPT_SECONDS, source: Path | None = None) -> CommandResult:
        """Run a script as ``Device.shell`` does, with patience: all cores share what this machine has to spare."""
        return super().shell(script, timeout=max(timeout, _PATIENCE_SECONDS), source=source)

    def run(self, name: str, arguments: Sequence[str] = (), *, timeout: float = 600) -> CommandResult:
        """Run a program as ``Device.run`` does."""
        try:
            return super().run(name, arguments, timeout=timeout)
        except BaseException:
            # What a script prints comes when it has ended, so that nobody knows the number of its program before.
            with suppress(SparrowError):
                self.shell(f"killall -q -9 {shlex.quote(PurePosixPath(name).name)}")
            raise

    def _run_qemu(self, command: list[str]) -> None:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode:
            raise SparrowError(f"QEMU does not make the machine: {result.stderr.strip()[-500:]}",
                               expected="QEMU 7.2 or newer", next_step=_INSTALL)  # fmt: skip

    def _shell_command(self, script: str) -> list[str]:
        client = Path(__file__).with_name("machine_shell.py")
        return [sys.executable, "-I", "-S", str(client), str(self._socket), script]

    def _fail(self, doing: str, message: str) -> NoReturn:
        logs = (self._console, self._console.with_name("errors"))
        said = [message, *(log.read_bytes().decode(errors="replace") for log in logs if log.exists())]
        raise SparrowError(
            f"the emulated machine could not {doing}: {chr(10).join(said).strip()[-2000:]}",
            expected=f"a machine that boots within {_PATIENCE_SECONDS:g} s and stays up",
            next_step="try again on an idle machine; if it stays, report it",
        )


def with_capacities(tree: bytes, capacities: tuple[int, ...]) -> bytes:
    """Add the speed of each core to a flattened device tree.

    The format is that of the Devicetree Specification, version 17: a header of big-endian words, a list of reserved
    memory, a block of tokens, and a block of strings that properties are named by. The room that QEMU leaves for more
    goes: with it, the tree is larger than the 2 MB that a kernel maps.

    Args:
        tree: Device tree with a node ``cpu@...`` for each core, in their order.
        capacities: What becomes the property ``capacity-dmips-mhz`` of each.

    Raises:
        SparrowError: It has other cores.
    """
    _, _, structure, strings, *_, strings_size, structure_size = struct.unpack_from(">10I", tree)
    names = tree[strings : strings + strings_size] + b"capacity-dmips-mhz\0"
    tokens, at, found = bytearray(), structure, 0
    while at < structure + structure_size:
        (token,) = struct.unpack_from(">I", tree, at)
        end = at + 4
        if token == 1:  # a node begins: its name
            end += _padded(tree.index(b"\0", end) + 1 - end)
        elif token == 3:  # a property: bytes and name of its value, its value
            end += 8 + _padded(struct.unpack_from(">I", tree, end)[0])
        tokens += tree[at:end]
        if token == 1 and tree[at + 4 : end].startswith(b"cpu@"):
            if found < len(capacities):
                tokens += struct.pack(">4I", 3, 4, strings_size, capacities[found])
            found += 1
        at = end
    if found != len(capacities):
        raise SparrowError(f"a device tree with {found} cores", expected=f"{len(capacities)} cores")
    head = bytearray(tree[:structure])
    struct.pack_into(">3I", head, 4, structure + len(tokens) + len(names), structure, structure + len(tokens))
    struct.pack_into(">2I", head, 32, len(names), len(tokens))
    return bytes(head + tokens) + names


def _padded(size: int) -> int:
    return -(-size // 4) * 4


def _initial_disk(root: Path) -> Path:
    """Archive that the kernel unpacks into its first root, in the cache: busybox, kernel modules and the script."""
    files = {"init": _INIT.encode(), "bin/busybox": (root / "bin" / "busybox").read_bytes()}
    files |= {f"{name}.ko": next(root.glob(f"lib/modules/*/kernel/**/{name}.ko")).read_bytes() for name in _MODULES}
    entries: list[tuple[str, int, bytes]] = [(name, 0o040755, b"") for name in ("bin", "proc", "sys", "dev", "tmp")]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    archive = b"".join(_archived(*entry) for entry in (*entries, ("TRAILER!!!", 0, b"")))
    path = cache_dir() / "machines" / f"{hashlib.sha256(archive).hexdigest()[:16]}.cpio"
    if not path.exists():
        make_folder(path.parent)
        with atomic_file(path) as temporary:
            temporary.write_bytes(archive)
    return path


def _archived(name: str, mode: int, content: bytes) -> bytes:
    """One member of a cpio archive of the form ``newc``: 13 hexadecimal numbers, name and content padded to 4 bytes."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
    return head.ljust(_padded(len(head)), b"\0") + content.ljust(_padded(len(content)), b"\0")

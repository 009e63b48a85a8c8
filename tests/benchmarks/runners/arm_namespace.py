"""Name spaces in which a fixture is an aarch64 machine of its own.

A user, mount and pid name space with a binfmt_misc of its own (Linux 6.7 or later; before, the one of the whole machine
is used if it knows aarch64): whatever is started there runs under qemu-aarch64, neither root nor a setting of this
machine is needed, and all of it ends with the process that made it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID = 0x10000000, 0x20000, 0x20000000
MS_RDONLY, MS_BIND, MS_REC, MS_PRIVATE = 1, 0x1000, 0x4000, 1 << 18
PR_SET_PDEATHSIG = 1

BINFMT = Path("/proc/sys/fs/binfmt_misc")
# The first 20 bytes of an executable for aarch64, and which of their bits count. `F`: opened now, before any chroot.
RULE = (rb":sparrow:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
        rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:%s:F")  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: Path | str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())
    check(result, f"mount of {source} on {target}")


def bind(source: Path, target: Path) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)


def become(user: int, flags: int = 0) -> None:
    """Go on in a user name space in which the user has another number."""
    known = os.getuid(), os.getgid()
    check(_libc.unshare(CLONE_NEWUSER | flags), "new name spaces")
    Path("/proc/self/setgroups").write_text("deny")
    for name, number in zip(("uid_map", "gid_map"), known, strict=True):
        Path("/proc/self", name).write_text(f"{user} {number} 1")


def enter(qemu: str, prepare: Callable[[], None]) -> None:
    """Go on as root of new name spaces; the calling process stays outside, waits, and ends with what is inside.

    Args:
        qemu: Path of qemu-aarch64.
        prepare: Called in there with all rights, before anything is started.
    """
    become(0, CLONE_NEWNS | CLONE_NEWPID)
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    if child := os.fork():
        wait_for(child, lambda: os.waitpid(child, 0))
    # Process 1 in there: when it ends, the kernel ends all the rest.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    mount("proc", Path("/proc"), "proc")
    _register(qemu)
    prepare()
    if child := os.fork():
        wait_for(child, os.wait)


def wait_for(child: int, wait: Callable[[], tuple[int, int]]) -> None:
    """Wait for a child, reap others meanwhile, and end as it did."""
    while True:
        pid, status = wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _register(qemu: str) -> None:
    known = (BINFMT / "qemu-aarch64").exists()
    try:
        mount("none", BINFMT, "binfmt_misc")
        (BINFMT / "register").write_bytes(RULE % os.fsencode(qemu))
    except OSError:
        if not known:
            raise


def describe_cores(fakes: Path, root: Path) -> None:
    """Put made-up files over those of the kernel: ``fakes/proc/*`` and the whole of ``fakes/sys``."""
    for file in (fakes / "proc").iterdir():
        bind(file, root / "proc" / file.name)
    bind(fakes / "sys", root / "sys")


def fail(error: OSError) -> None:
    """Say on one line why the fixture cannot start, for a test to skip with."""
    print(f"CANNOT {error}", flush=True)
    with suppress(OSError):
        sys.stdout.close()
    os._exit(1)

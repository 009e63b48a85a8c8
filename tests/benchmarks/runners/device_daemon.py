"""A pretend phone: a device-side daemon that the real ``adb`` client connects to over TCP.

    device_daemon.py '{"root": ..., ...}'     (the fields of Phone as JSON)

``root`` becomes the phone's file system. Shell commands are run by an aarch64 mksh, Android's shell, with aarch64
busybox tools, and every aarch64 program that it starts runs under qemu-aarch64, so that pushed programs run as on a
phone. (Busybox's own shell will not do: it starts /proc/self/exe for its applets, which under QEMU is QEMU.)

Prints ``LISTENING port`` when it is ready, or ``CANNOT reason``.
"""

import errno
import json
import os
import pty
import queue
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arm_namespace import MS_RDONLY, bind, describe_cores, enter, fail, mount

CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
HEADER = struct.Struct("<6I")
VERSION = 0x01000001  # messages without checksums
MAX_PAYLOAD = 256 * 1024
AUTH_TOKEN, AUTH_SIGNATURE = 1, 2
SYNC_MAX = 64 * 1024  # largest piece of a file
SYNC_HEADER = struct.Struct("<4sI")

# Shell protocol, version 2.
FRAME = struct.Struct("<BI")
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


@dataclass(frozen=True)
class Phone:
    """What the phone is like.

    Attributes:
        root: Folder that becomes its file system.
        busybox: Static aarch64 busybox.
        shell: Static aarch64 mksh.
        qemu: qemu-aarch64.
        fakes: Folder of made-up files of the kernel, see ``arm_namespace.describe_cores``.
        properties: What getprop knows.
        state: ``device``, ``unauthorized``, or ``mute``: it never answers, and adb takes it for offline.
        features: What its daemon can; without ``shell_v2``, before Android 7, a shell tells no exit codes, has a
            terminal, and mixes errors into the output.
        full: It has no space left after so many bytes of a file.
        read_only: Nothing can be written under ``/data``.
        vanish_after_bytes: It drops dead when so many bytes were pushed.
        vanish_on: It drops dead after a shell command that matches this began.
        vanish_seconds: So long after it.
    """

    root: str
    busybox: str
    shell: str
    qemu: str
    fakes: str
    properties: dict[str, str]
    state: str = "device"
    features: tuple[str, ...] = ("shell_v2", "stat_v2", "ls_v2", "fixed_push_mkdir")
    full: int | None = None
    read_only: bool = False
    vanish_after_bytes: int | None = None
    vanish_on: str | None = None
    vanish_seconds: float = 0.5


class ClosedError(Exception):
    """The stream or the connection has gone."""


class Stream:
    """One service that the client opened: bytes in order both ways, one unacknowledged message in each direction."""

    def __init__(self, connection: "Connection", local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.inbox: queue.Queue[bytes | None] = queue.Queue()
        self.pending = b""
        self.may_send = threading.Semaphore(1)
        self.gone = threading.Event()
        self.sending = threading.Lock()

    def write(self, data: bytes) -> None:
        with self.sending:
            view = memoryview(data)
            while len(view):
                self.may_send.acquire()
                if self.gone.is_set():
                    raise ClosedError
                self.connection.send(WRTE, self.local, self.remote, view[: self.connection.max_payload])
                view = view[self.connection.max_payload :]

    def chunk(self) -> bytes:
        """The next message; empty once the stream is closed."""
        data = self.inbox.get()
        if data is None:
            self.inbox.put(None)
            return b""
        self.connection.send(OKAY, self.local, self.remote)
        return data

    def read(self, count: int) -> bytes:
        while len(self.pending) < count:
            data = self.chunk()
            if not data:
                raise ClosedError
            self.pending = self.pending + data if self.pending else data
        data, self.pending = self.pending[:count], self.pending[count:]
        return data

    def hang_up(self) -> None:
        """The other side or the connection closed."""
        self.gone.set()
        self.inbox.put(None)
        self.may_send.release()

    def close(self) -> None:
        self.inbox.put(None)  # lets a reader of ours end
        if not self.gone.is_set():
            with self.sending:
                self.may_send.acquire()  # after the last message was acknowledged
                if not self.gone.is_set():
                    self.gone.set()
                    self.connection.streams.pop(self.local, None)
                    self.connection.send(CLSE, self.local, self.remote)


class Connection:
    """The client's one connection, which carries all streams."""

    def __init__(self, phone: Phone, accepted: socket.socket) -> None:
        self.phone, self.socket = phone, accepted
        self.max_payload = 4096
        self.streams: dict[int, Stream] = {}
        self.opened = 0
        self.received = 0
        self.sending = threading.Lock()

    def send(self, command: int, first: int, second: int, data: bytes | memoryview = b"") -> None:
        header = HEADER.pack(command, first, second, len(data), 0, command ^ 0xFFFFFFFF)
        try:
            with self.sending:
                self.socket.sendall(header + bytes(data))
        except OSError as error:
            raise ClosedError from error

    def receive(self, count: int) -> bytes:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            more = self.socket.recv_into(view[got:])
            if not more:
                raise ClosedError
            got += more
        return bytes(data)

    def serve(self) -> None:
        try:
            while True:
                command, first, second, length, _, magic = HEADER.unpack(self.receive(HEADER.size))
                if magic != command ^ 0xFFFFFFFF or length > MAX_PAYLOAD:
                    raise ClosedError
                self.handle(command, first, second, self.receive(length))
        except (ClosedError, OSError):
            pass
        finally:
            for stream in list(self.streams.values()):
                stream.hang_up()
            self.socket.close()

    def handle(self, command: int, first: int, second: int, data: bytes) -> None:
        stream = self.streams.get(second)
        if command == CNXN:
            self.answer(second)
        elif command == AUTH and first == AUTH_SIGNATURE:  # else a public key, for which nobody taps "Allow"
            self.send(AUTH, AUTH_TOKEN, 0, os.urandom(20))
        elif command == OPEN:
            self.opened += 1
            stream = self.streams[self.opened] = Stream(self, self.opened, first)
            service = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            threading.Thread(target=run_service, args=(stream, service), daemon=True).start()
        elif command == WRTE and stream:
            stream.inbox.put(data)
        elif command == OKAY and stream:
            stream.may_send.release()
        elif command == CLSE and stream:
            del self.streams[second]
            stream.hang_up()

    def answer(self, max_payload: int) -> None:
        if self.phone.state == "unauthorized":
            self.send(AUTH, AUTH_TOKEN, 0, os.urandom(20))
        elif self.phone.state == "device":
            self.max_payload = min(max_payload, MAX_PAYLOAD)
            banner = f"device::ro.product.model=Pretend;features={','.join(self.phone.features)}"
            self.send(CNXN, VERSION, MAX_PAYLOAD, banner.encode())


def vanish() -> None:
    os._exit(9)


def run_service(stream: Stream, service: str) -> None:
    kind = re.split("[:,]", service)[0]
    known = {"shell": serve_shell, "exec": serve_shell, "sync": serve_sync}
    with suppress(ClosedError):
        try:
            if kind in known:
                stream.connection.send(OKAY, stream.local, stream.remote)
                known[kind](stream, service)
        finally:
            stream.close()


def serve_shell(stream: Stream, service: str) -> None:
    """``shell:command`` of old clients and phones, ``shell,v2,raw:command`` of new ones, ``exec:command``."""
    phone = stream.connection.phone
    head, _, command = service.partition(":")
    framed = "v2" in head.split(",")
    terminal = head != "exec" and not framed
    environment = {"PATH": "/system/bin", "HOME": "/", "TMPDIR": "/data/local/tmp"}
    if terminal:
        master, slave = pty.openpty()
        inner = {"stdin": slave, "stdout": slave, "stderr": slave}
    else:
        inner = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE,
                 "stderr": subprocess.PIPE if framed else subprocess.STDOUT}  # fmt: skip
    process = subprocess.Popen(["/system/bin/sh", "-c", command], env=environment, cwd="/", bufsize=0,
                               start_new_session=True, **inner)  # fmt: skip
    if terminal:
        os.close(slave)
        outputs, write_end = {STDOUT: master}, master
    else:
        outputs = {STDOUT: process.stdout.fileno()}
        write_end = process.stdin.fileno()
        if framed:
            outputs[STDERR] = process.stderr.fileno()
    if phone.vanish_on and re.search(phone.vanish_on, command):
        threading.Timer(phone.vanish_seconds, vanish).start()

    def pump_output(kind: int, end: int) -> None:
        with suppress(ClosedError, OSError):  # the end of a terminal is an error
            while data := os.read(end, 32 * 1024):
                stream.write(FRAME.pack(kind, len(data)) + data if framed else data)

    def pump_input() -> None:
        try:
            while True:
                kind, data = STDIN, b""
                if framed:
                    kind, length = FRAME.unpack(stream.read(FRAME.size))
                    data = stream.read(length)
                elif not (data := stream.chunk()):
                    raise ClosedError
                if kind == STDIN:
                    view = memoryview(data)
                    while len(view):
                        view = view[os.write(write_end, view) :]
                elif kind == CLOSE_STDIN:
                    process.stdin.close()
        except ClosedError:
            # The client went away. As on a phone: to the shell alone, not to what it started.
            if process.poll() is None and stream.gone.is_set():
                process.send_signal(signal.SIGHUP)
        except OSError:
            pass

    pumps = [threading.Thread(target=pump_output, args=output, daemon=True) for output in outputs.items()]
    for thread in [*pumps, threading.Thread(target=pump_input, daemon=True)]:
        thread.start()
    for thread in pumps:
        thread.join()
    code = process.wait()
    if framed and not stream.gone.is_set():
        stream.write(FRAME.pack(EXIT, 1) + bytes([(128 - code if code < 0 else code) & 0xFF]))


def serve_sync(stream: Stream, service: str) -> None:
    """Files to and from the phone."""
    while True:
        request, length = SYNC_HEADER.unpack(stream.read(SYNC_HEADER.size))
        if request == b"QUIT":
            return
        path = stream.read(length).decode("utf-8", "surrogateescape")
        if request == b"SEND":
            store_file(stream, *path.rsplit(",", 1))
        elif request == b"RECV":
            send_file(stream, Path(path))
        elif request in (b"STAT", b"LST2", b"STA2"):
            stream.write(describe_file(request, Path(path)))
        else:
            return send_failure(stream, f"unknown request {request!r}")


def send_failure(stream: Stream, text: str) -> None:
    stream.write(SYNC_HEADER.pack(b"FAIL", len(text.encode())) + text.encode())


def describe_file(request: bytes, path: Path) -> bytes:
    code, numbers = 0, [0] * 10
    try:
        found = path.stat() if request == b"STA2" else path.lstat()
        numbers = [found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size,
                   int(found.st_atime), int(found.st_mtime), int(found.st_ctime)]  # fmt: skip
    except OSError as error:
        code = error.errno or errno.EIO
    if request == b"STAT":
        return struct.pack("<4sIII", b"STAT", numbers[2], numbers[6] & 0xFFFFFFFF, numbers[8] & 0xFFFFFFFF)
    return struct.pack("<4sIQQIIIIQqqq", request, code, *numbers)


def store_file(stream: Stream, name: str, mode: str) -> None:
    phone, connection = stream.connection.phone, stream.connection
    path, problem, total, file = Path(name), "", 0, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        file = path.open("wb", buffering=0)
    except OSError as error:
        problem = f"couldn't create file: {error.strerror}"
    while True:
        kind, length = SYNC_HEADER.unpack(stream.read(SYNC_HEADER.size))
        if kind == b"DONE":
            break
        data = stream.read(length)
        total += length
        connection.received += length
        if phone.vanish_after_bytes is not None and connection.received >= phone.vanish_after_bytes:
            vanish()
        if file and not problem:  # the rest is read all the same, to keep the stream in step
            try:
                if phone.full is not None and total > phone.full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file.write(data)
            except OSError as error:
                problem = f"write failed: {error.strerror}"
    if file:
        file.close()
        path.chmod(stat.S_IMODE(int(mode)))
        if problem:
            path.unlink()
    if problem:
        send_failure(stream, problem)
    else:
        stream.write(SYNC_HEADER.pack(b"OKAY", 0))


def send_file(stream: Stream, path: Path) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(SYNC_MAX):
                stream.write(SYNC_HEADER.pack(b"DATA", len(data)) + data)
    except OSError as error:
        return send_failure(stream, f"open failed: {error.strerror}")
    stream.write(SYNC_HEADER.pack(b"DONE", 0))


# The phone's file system.

GETPROP = """#!/system/bin/sh
while IFS='=' read -r name value; do [ "$name" = "$1" ] && echo "$value"; done < /system/build.prop
"""


def make_root(phone: Phone) -> None:
    root = Path(phone.root)
    programs = root / "system" / "bin"
    for name in ("data/local/tmp", "system/bin", "proc", "sys", "dev", "usr"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(phone.busybox, programs / "busybox")
    shutil.copy(phone.shell, programs / "sh")
    # What Android's toybox has and Sparrow needs; more would hide that a script needs it.
    for name in ("cat", "chmod", "kill", "ls", "mkdir", "mv", "rm", "sleep", "uname", "wc"):
        (programs / name).symlink_to("busybox")
    (programs / "getprop").write_text(GETPROP)
    (programs / "getprop").chmod(0o755)
    lines = (f"{name}={value}\n" for name, value in phone.properties.items())
    (root / "system" / "build.prop").write_text("".join(lines))
    for name in ("lib", "lib64"):  # QEMU needs this machine's libraries
        (root / name).symlink_to(f"usr/{name}")


def enter_root(phone: Phone) -> Callable[[], None]:
    def prepare() -> None:
        root = Path(phone.root)
        bind(root, root)
        bind(Path("/usr"), root / "usr")
        mount("proc", root / "proc", "proc")
        mount("dev", root / "dev", "tmpfs", data="mode=755")
        (root / "dev" / "pts").mkdir()
        mount("devpts", root / "dev" / "pts", "devpts", data="newinstance,ptmxmode=0666")
        (root / "dev" / "ptmx").symlink_to("pts/ptmx")
        for name in ("null", "zero", "urandom", "tty"):
            (root / "dev" / name).touch()
            bind(Path("/dev", name), root / "dev" / name)
        describe_cores(Path(phone.fakes), root)
        if phone.read_only:
            mount("data", root / "data", "tmpfs", MS_RDONLY)
        "".encode("idna")  # a codec that is loaded late, and could not be after the chroot
        os.chroot(root)
        os.chdir("/")

    return prepare


def main() -> None:
    phone = Phone(**json.loads(sys.argv[1]))
    make_root(phone)
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        enter(phone.qemu, enter_root(phone))
    except OSError as error:
        fail(error)
    print(f"LISTENING {listener.getsockname()[1]}", flush=True)
    while True:
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(phone, accepted).serve, daemon=True).start()


if __name__ == "__main__":
    main()

"""What devices have in common: what they are, their files, running a program on them, and what they read.

A transport, ``adb``, ``ssh`` or ``local``, brings a shell of the device and a way to copy files; the rest is done by
small scripts for that shell. They use what a shell has built in, and of commands those alone that every Android and
every Linux has.
"""

import hashlib
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import ClassVar, NoReturn

from sparrow.deploy.bundle import file_sha256
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file

ABI = "arm64-v8a"

# What a short script may take: a phone that sleeps answers late, one that hangs does not answer at all.
SCRIPT_SECONDS = 30.0
# What results may take to come back; they are small.
FETCH_SECONDS = 120.0
# Slower than a bad wireless connection, so that only a stalled transfer is given up.
_MIN_BYTES_A_SECOND = 250_000
_POLL_SECONDS = 0.02
# A shell tells of a program that a signal ended by adding this to the signal's number.
_SIGNAL_EXIT = 128
_AFTER_SIGNAL: dict[int, str] = {
    signal.SIGILL: "its processor lacks an instruction: compile the network for it, with another --target",
    signal.SIGKILL: "the system may have run out of memory: close other programs on the device",
}


@dataclass(frozen=True)
class DeviceCore:
    """One core of a device that is online.

    Attributes:
        number: As Linux numbers it.
        part: ``CPU part`` of ``/proc/cpuinfo``, such as ``0xd05`` for a Cortex-A55; empty if it is not told.
        max_khz: Highest frequency in kHz, ``None`` if it is not told.
        capacity: Its speed as the scheduler rates it, 1024 for the fastest; ``None`` if it is not told.
    """

    number: int
    part: str
    max_khz: int | None
    capacity: int | None


@dataclass(frozen=True)
class DeviceDescription:
    """What a device says of itself.

    Attributes:
        runner: ``adb``, ``ssh`` or ``local``.
        name: Serial number, host, or empty for this machine.
        model: Model of the phone or board; empty if it is not told, as below.
        soc: Its system on chip.
        system: Operating system and version, such as ``Android 13`` or ``Linux 6.6.31``.
        abi: Instruction set of its programs, in Android's words: ``arm64-v8a`` if it runs what Sparrow compiles.
        cores: Those online, by number.
        features: ``Features`` of ``/proc/cpuinfo``.
    """

    runner: str
    name: str
    model: str
    soc: str
    system: str
    abi: str
    cores: tuple[DeviceCore, ...]
    features: tuple[str, ...]

    def require_abi(self) -> None:
        """Do nothing if the device runs 64-bit ARM programs.

        Raises:
            SparrowError: It does not.
        """
        if self.abi != ABI:
            raise SparrowError(
                f"device {self.name or 'here'} ({self.model or 'unknown model'}) runs {self.abi or 'unknown'} programs",
                expected=f"{ABI}: a 64-bit ARM processor with a 64-bit system",
                next_step="choose another device; Sparrow does not compile for 32-bit ARM or for x86",
            )

    def place(self, affinity: str, threads: int) -> tuple[int, ...]:
        """Choose a core for each thread, the fastest first, as ``predict.soc.Soc.place`` does for a prediction.

        Args:
            affinity: ``big`` for all cores but the slowest kind, ``little`` for these, ``all``, or numbers of cores
                such as ``0,1,4``. Kinds are told apart by the scheduler's capacity, without it by the highest
                frequency. Where all cores are of one kind, ``big`` and ``little`` are all.
            threads: Number of threads, at least 1.

        Returns:
            Numbers of cores, as many as threads.

        Raises:
            SparrowError: The affinity is not understood or names a core that is not online, or there are fewer cores
                than threads.
        """
        speeds = _speeds(self.cores)
        slowest = min(speeds.values())
        little = [number for number, speed in speeds.items() if speed == slowest]
        groups = {"big": [number for number in speeds if number not in little] or little, "little": little,
                  "all": list(speeds)}  # fmt: skip
        if affinity in groups:
            chosen = groups[affinity]
        else:
            names = affinity.split(",")
            known = {str(number): number for number in speeds}
            if not set(names) <= set(known) or len(set(names)) < len(names):
                raise SparrowError(f"affinity {affinity!r}", next_step="sparrow bench --help",
                                   expected="big, little, all, or different numbers of cores that are online, such as "
                                            f"0,1; online are {','.join(known)}")  # fmt: skip
            chosen = [known[name] for name in names]
        if not 1 <= threads <= len(chosen):
            raise SparrowError(f"{threads} threads on {len(chosen)} cores (affinity {affinity})",
                               expected=f"1 to {len(chosen)} threads",
                               next_step="ask for fewer threads or for another affinity")  # fmt: skip
        return tuple(sorted(chosen, key=lambda number: (-speeds[number], number))[:threads])


def _speeds(cores: Sequence[DeviceCore]) -> dict[int, int]:
    """A figure for each core's number by which cores compare; the same for all if the device does not tell."""
    capacities = {core.number: core.capacity for core in cores if core.capacity is not None}
    frequencies = {core.number: core.max_khz for core in cores if core.max_khz is not None}
    whole = (speeds for speeds in (capacities, frequencies) if len(speeds) == len(cores))
    return next(whole, {core.number: 0 for core in cores})


@dataclass(frozen=True)
class CoreReading:
    """A core's frequency at one moment.

    Attributes:
        number: As Linux numbers it.
        khz: Frequency in kHz, ``None`` if it cannot be read.
        limit_khz: Highest frequency that it may take now: a device that is too hot lowers it. ``None`` likewise.
        governor: What chooses the frequency, such as ``schedutil``; empty likewise.
    """

    number: int
    khz: int | None
    limit_khz: int | None
    governor: str


@dataclass(frozen=True)
class Readings:
    """Frequencies and temperatures at one moment, as far as the device lets them be read.

    Attributes:
        cores: By number.
        celsius: Temperature of each thermal zone, by its number and type, such as ``"3 cpu-big"``.
    """

    cores: tuple[CoreReading, ...]
    celsius: dict[str, float]


@dataclass(frozen=True)
class CommandResult:
    """What a program did.

    Attributes:
        exit_code: Its exit code.
        stdout: What it printed.
        stderr: What it printed as errors. A phone before Android 7 has both in ``stdout``.
    """

    exit_code: int
    stdout: str
    stderr: str


class Device(ABC):
    """A phone, a board, or this machine. Its files lie in a folder of its own, by names relative to it.

    Attributes:
        runner: ``adb``, ``ssh``, ``local`` or ``qemu-system``.
        name: Serial number or host.
        folder: Working folder on the device.
    """

    runner: ClassVar[str]

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder
        self._stop = threading.Event()

    @abstractmethod
    def _shell_command(self, script: str) -> list[str]:
        """Command on this machine that runs a script in the device's shell."""

    def _send(self, source: Path, target: str) -> None:
        """Copy a file to a path on the device, through its shell where a subclass knows no other way.

        Raises:
            SparrowError: The copy is not whole.
        """
        result = self.shell(f"cat >{shlex.quote(target)}", source=source, timeout=transfer_seconds(source))
        if result.exit_code:
            self._fail(f"receive {source.name}", result.stderr)

    def _fetch(self, source: str, target: Path) -> None:
        """Copy a file from a path on the device, likewise.

        Raises:
            SparrowError: The copy is not whole.
        """
        with Process(self._shell_command(f"cat {shlex.quote(source)}"), target=target) as process:
            if self._wait(process, f"send {source}", FETCH_SECONDS):
                self._fail(f"send {source}", process.output()[1])

    @abstractmethod
    def _fail(self, doing: str, message: str) -> NoReturn:
        """Raise what a failure of the transport means.

        Args:
            doing: What was tried, in words.
            message: What the transport's program printed.

        Raises:
            SparrowError: Always.
        """

    def stop(self) -> None:
        """From another thread: what waits for the device now, or does so next, ends with an error, once."""
        self._stop.set()

    def rest(self, seconds: float) -> None:
        """Wait.

        Raises:
            SparrowError: ``stop`` was called.
        """
        if self._stop.wait(seconds):
            self._stop.clear()
            raise SparrowError(f"{self._who()} was given up")

    def _wait(self, process: "Process", doing: str, timeout: float) -> int:
        """Wait for a process of the transport and return its exit code.

        Raises:
            SparrowError: It did not end in time, or ``stop`` was called.
        """
        deadline = time.monotonic() + timeout
        while (code := process.poll()) is None:
            self.rest(_POLL_SECONDS)
            if time.monotonic() > deadline:
                raise SparrowError(f"{self._who()} did not {doing} within {timeout:g} s",
                                   next_step="wake the device and check its connection; raise the time limit for a "
                                             "large network")  # fmt: skip
        return code

    def shell(self, script: str, *, timeout: float = SCRIPT_SECONDS, source: Path | None = None) -> CommandResult:
        """Run a short script in the device's shell.

        Args:
            script: Script for a POSIX shell.
            timeout: Seconds after which it is given up.
            source: File that is its standard input.

        Returns:
            What it did. An exit code other than 0 raises nothing.

        Raises:
            SparrowError: The device cannot be reached or went away, or the time was up.
        """
        # A transport's own exit code cannot be relied on: that of adb is 0 when a device vanishes.
        mark = secrets.token_hex(8)
        wrapped = f"({script}\n); code=$?; echo; echo {mark} $code"
        with Process(self._shell_command(wrapped), source) as process:
            self._wait(process, "run a script", timeout)
            stdout, stderr = process.output()
        text, found, code = stdout.rpartition(f"\n{mark} ")
        if not found or not code.strip().isdigit():
            self._fail("run a script", f"{stderr}\n{stdout}")
        return CommandResult(int(code), text, stderr)

    def run(self, name: str, arguments: Sequence[str] = (), *, timeout: float = 600) -> CommandResult:
        """Run a program that was pushed, in the working folder; it is killed if it does not end in time.

        Args:
            name: Its name.
            arguments: Its arguments.
            timeout: Seconds after which it is killed.

        Returns:
            What it did. An exit code other than 0 raises nothing.

        Raises:
            SparrowError: The device cannot be reached or went away, a signal ended the program, or the time was up.
        """
        # The program's number is printed before it begins: whoever gives up can kill it, which the end of adb or ssh
        # does not do, and nothing that it prints gets in between.
        mark = secrets.token_hex(8)
        program = shlex.join([f"./{name}", *arguments])
        script = (
            f"cd {shlex.quote(self.folder)} || exit\n"
            f"sh -c 'echo; echo {mark} $$; exec \"$@\"' sh {program} </dev/null &\n"
            f"wait $!; code=$?; echo; echo {mark} $code"
        )
        with Process(self._shell_command(script)) as process:
            try:
                self._wait(process, f"run {name} to its end", timeout)
            except BaseException:
                if number := re.search(rf"^{mark} (\d+)$", process.output()[0], re.MULTILINE):
                    with suppress(SparrowError):
                        self.shell(f"kill -9 {number[1]}")
                raise
            stdout, stderr = process.output()
        parts = re.split(rf"\n{mark} (\d+)\n", stdout)
        if len(parts) != 5:
            self._fail(f"run {name}", f"{stderr}\n{stdout}")
        result = CommandResult(int(parts[3]), parts[0] + parts[2], stderr)
        ended_by = result.exit_code - _SIGNAL_EXIT
        if ended_by in {known.value for known in signal.Signals}:
            raise SparrowError(
                f"{name} was ended by {signal.Signals(ended_by).name} on {self._who()}\n"
                f"{(result.stdout + result.stderr).strip()[-2000:]}".rstrip(),
                next_step=_AFTER_SIGNAL.get(ended_by, "report it with the model and the device"),
            )
        return result

    def _who(self) -> str:
        return f"device {self.name}" if self.name else "this machine"

    def push(self, files: Mapping[str, Path]) -> tuple[str, ...]:
        """Copy files to the device, only those that it does not have yet, and make them executable.

        The SHA-256 of each is kept beside it on the device.

        Args:
            files: By name on the device; ``/`` makes folders.

        Returns:
            The names that were copied.

        Raises:
            SparrowError: The device cannot be reached, went away or is full. A file is either whole or not there.
        """
        folders = sorted({str(PurePosixPath(self.folder, name).parent) for name in files})
        paths = {name: shlex.quote(str(PurePosixPath(self.folder, name))) for name in files}
        hashes = {name: f"{file_sha256(path)} {path.stat().st_size}" for name, path in files.items()}
        # What a crash of the device left of a file has another size than its hash was written with.
        look = [f"echo $({{ cat {path}.sha256; wc -c <{path}; }} 2>/dev/null)" for path in paths.values()]
        made = self.shell("\n".join([f"mkdir -p {shlex.join(folders)} || exit", *look]))
        known = made.stdout.splitlines()
        if made.exit_code or len(known) < len(files):
            self._fail(f"make the folder {self.folder}", f"{made.stderr}\n{made.stdout}")
        sent = [name for name, found in zip(files, known, strict=False) if found.strip() != hashes[name]]
        if not sent:
            return ()
        try:
            for name in sent:
                self._send(files[name], f"{PurePosixPath(self.folder, name)}.partial")
            stored = self.shell("".join(
                f"chmod 755 {path}.partial && rm -f {path}.sha256 && mv {path}.partial {path} && "
                f"echo {hashes[name].split()[0]} >{path}.sha256 || exit\n"
                for name, path in paths.items() if name in sent
            ))  # fmt: skip
            if stored.exit_code:
                self._fail(f"store {', '.join(sent)}", f"{stored.stderr}\n{stored.stdout}")
        except BaseException:
            with suppress(SparrowError):
                self.shell(f"rm -f {' '.join(f'{paths[name]}.partial' for name in sent)}")
            raise
        return tuple(sent)

    def pull(self, name: str, target: Path) -> None:
        """Copy a file from the device.

        Args:
            name: Its name.
            target: Where it is written to, whole or not at all.

        Raises:
            SparrowError: It is not there, the device went away, or the target cannot be written.
        """
        with atomic_file(target) as temporary:
            self._fetch(str(PurePosixPath(self.folder, name)), temporary)

    def remove(self, name: str = "") -> None:
        """Remove a file or folder from the device, by default all that Sparrow has put there.

        Raises:
            SparrowError: The device cannot be reached.
        """
        self.shell(f"rm -rf {shlex.quote(str(PurePosixPath(self.folder, name)))}")

    def describe(self) -> DeviceDescription:
        """Ask the device what it is.

        Raises:
            SparrowError: The device cannot be reached.
        """
        # The device tree separates its strings by zeros, which a shell cannot hold.
        tree = "/proc/device-tree"
        strings = "\n".join(f"echo '@{name}' $(tr '\\0' ' ' <{tree}/{name})" for name in ("model", "compatible"))
        properties = ("ro.product.manufacturer", "ro.product.model", "ro.soc.model", "ro.board.platform",
                      "ro.build.version.release", "ro.product.cpu.abilist", "ro.product.cpu.abi")  # fmt: skip
        ask = "\n".join(f'echo "@{name}" "$(getprop {name})"' for name in properties)
        found = self._read(
            f"echo '@machine' $(uname -m)\necho '@release' $(uname -r)\n"
            f"if type getprop >/dev/null; then\n{ask}\nelse\n{strings}\nfi",
            "/proc/cpuinfo", "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/cpu[0-9]*/cpu_capacity",
            "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
        )  # fmt: skip
        maker, model, soc, platform, android, abis, abi = (found.get(name, "") for name in properties)
        if android:
            # An old Android has no list, and the list of a 64-bit system begins with the ABI that it prefers.
            abi = (abis or abi).split(",")[0]
        else:
            model, machine = found.get("model", ""), found.get("machine", "")
            abi = ABI if machine == "aarch64" else machine
            soc = found.get("compatible", "").rpartition(" ")[2]
        parts, features = _read_cpuinfo(found.get("/proc/cpuinfo", ""))
        online = _numbers(found.get("/sys/devices/system/cpu/online", "")) or sorted(parts) or [0]
        path = "/sys/devices/system/cpu/cpu{}/{}"
        return DeviceDescription(
            runner=self.runner,
            name=self.name,
            model=model if model.startswith(maker) else f"{maker} {model}",
            soc=soc or platform,
            system=f"Android {android}" if android else f"Linux {found.get('release', '')}",
            abi=abi,
            cores=tuple(
                DeviceCore(
                    number,
                    parts.get(number, ""),
                    _integer(found.get(path.format(number, "cpufreq/cpuinfo_max_freq"))),
                    _integer(found.get(path.format(number, "cpu_capacity"))),
                )
                for number in online
            ),
            features=features,
        )

    def readings(self) -> Readings:
        """Read frequencies and temperatures, those that the device lets be read.

        Raises:
            SparrowError: The device cannot be reached.
        """
        cpufreq = "/sys/devices/system/cpu/cpu{}/cpufreq/"
        names = ("scaling_cur_freq", "scaling_max_freq", "scaling_governor")
        zones = "/sys/class/thermal/thermal_zone"
        found = self._read("", *(cpufreq.format("[0-9]*") + name for name in names), f"{zones}[0-9]*/type",
                           f"{zones}[0-9]*/temp")  # fmt: skip
        numbers = sorted({int(match[1]) for path in found if (match := re.search(r"/cpu(\d+)/cpufreq/", path))})
        cores = []
        for number in numbers:
            khz, limit, governor = (found.get(cpufreq.format(number) + name) for name in names)
            cores.append(CoreReading(number, _integer(khz), _integer(limit), governor or ""))
        celsius = {}
        for path, text in found.items():
            value = _integer(text)
            if path.endswith("/temp") and value is not None:
                zone = path.removeprefix(zones).removesuffix("/temp")
                # Millidegrees, but for some old kernels.
                degrees = value / 1000 if abs(value) >= 1000 else float(value)
                celsius[f"{zone} {found.get(f'{zones}{zone}/type', '')}".rstrip()] = degrees
        return Readings(tuple(cores), celsius)

    def _read(self, script: str, *patterns: str) -> dict[str, str]:
        """Run a script that prints lines ``@name value``, and read files into values by path.

        Args:
            script: Its values are of one line.
            patterns: Paths, with wildcards. What cannot be read is left out.
        """
        # By the shell itself: a command for each file would heat up what is to be measured.
        loop = (
            f'for file in {" ".join(patterns)}; do\n[ -r $file ] || continue\necho "@$file"\n'
            'while IFS= read -r line || [ -n "$line" ]; do echo "$line"; done <$file\ndone'
        )
        values: dict[str, str] = {}
        name = ""
        for line in self.shell(f"{{ {script}\n{loop}\n}} 2>/dev/null").stdout.splitlines():
            if line.startswith("@"):
                name, _, value = line[1:].partition(" ")
                values[name] = value.strip()
            elif name:
                values[name] = f"{values[name]}\n{line}".removeprefix("\n")
        return {name: value for name, value in values.items() if value}


def _read_cpuinfo(text: str) -> tuple[dict[int, str], tuple[str, ...]]:
    """Part of each core, and the features of the first."""
    fields = [tuple(part.strip() for part in line.partition(":")[::2]) for line in text.splitlines()]
    parts: dict[int, str] = {}
    number = 0
    for name, value in fields:
        if name == "processor" and value.isdigit():
            number = int(value)
            parts.setdefault(number, "")
        elif name == "CPU part":
            parts[number] = value
    return parts, tuple(next((value.split() for name, value in fields if name == "Features"), ()))


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text.strip()) else None


def _numbers(text: str) -> list[int]:
    """Numbers of a list such as ``0-3,6``."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return [number for first, last in ranges for number in range(int(first), int(last or first) + 1)]


def user_folder(prefix: str) -> str:
    """Path on a device that is of this user on this machine alone, however many share the device."""
    who = f"{os.getuid()}@{socket.gethostname()}"
    return f"{prefix}-{hashlib.sha256(who.encode()).hexdigest()[:12]}"


def transfer_seconds(source: Path) -> float:
    """Seconds that copying a file may take."""
    return SCRIPT_SECONDS + source.stat().st_size / _MIN_BYTES_A_SECOND


class Process:
    """A process on this machine whose output goes to files; leaving the context ends it if it still runs.

    Args:
        command: Program and arguments.
        source: File that is its standard input, by default an empty one.
        target: File that gets its standard output, by default a temporary one.

    Raises:
        SparrowError: The program is missing.
    """

    def __init__(self, command: Sequence[str], source: Path | None = None, target: Path | None = None) -> None:
        # Files in place of pipes: a server that adb starts keeps the ends that it inherits open.
        self._scratch = tempfile.TemporaryDirectory(prefix="sparrow-device-")
        self._files = target or Path(self._scratch.name, "stdout"), Path(self._scratch.name, "stderr")
        try:
            with (
                (source or Path(os.devnull)).open("rb") as stdin,
                self._files[0].open("wb") as stdout,
                self._files[1].open("wb") as stderr,
            ):
                self._process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr,
                                                 start_new_session=True)  # fmt: skip
        except OSError as error:
            self._scratch.cleanup()
            raise SparrowError(f"cannot run {command[0]}: {error.strerror}",
                               next_step="see what is missing: sparrow doctor") from error  # fmt: skip

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not after an end of its own: what is left in its session then is the server that adb started for all.
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._scratch.cleanup()

    def poll(self) -> int | None:
        """Its exit code, ``None`` while it runs."""
        return self._process.poll()

    def output(self) -> tuple[str, str]:
        """What it has printed so far, standard output and errors; a terminal's line ends become those of a file."""
        stdout, stderr = (file.read_bytes().decode(errors="replace").replace("\r\n", "\n") for file in self._files)
        return stdout, stderr

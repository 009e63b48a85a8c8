"""Runs aarch64 Linux programs under QEMU's user-mode emulation, and counts the instructions that they retire.

Results and counts under QEMU are those of a real core. Its wall-clock time is not, so none is reported.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from operator import add
from pathlib import Path
from types import TracebackType
from typing import Any

from sparrow.benchmarks.runners.execution_log import LOG_ITEMS, count_instructions
from sparrow.deploy.toolchain import source_key
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import atomic_file, cache_dir, make_folder

PLUGIN_SOURCE = Path(__file__).with_name("instruction_counter.c")

# Core or architecture level -> QEMU's `-cpu`. QEMU 7.2 has no model of most cores; the stand-ins have the same
# instruction sets as far as Sparrow's kernels use them, hence run the same instructions: cortex-a72 is plain NEON as
# cortex-a73 is, cortex-a76 has the dotprod and fp16 of cortex-a55, cortex-a78 and cortex-x1, and `max` without SVE and
# SME has the i8mm of cortex-a510, cortex-a710 and cortex-x2.
CPU_MODELS = {
    "cortex-a53": "cortex-a53",
    "cortex-a55": "cortex-a76",
    "cortex-a72": "cortex-a72",
    "cortex-a73": "cortex-a72",
    "cortex-a76": "cortex-a76",
    "cortex-a78": "cortex-a76",
    "cortex-x1": "cortex-a76",
    "cortex-a510": "max,sve=off,sme=off",
    "cortex-a710": "max,sve=off,sme=off",
    "cortex-x2": "max,sve=off,sme=off",
    "armv8-a": "cortex-a53",
    "armv8.2-a+dotprod": "cortex-a76",
    "armv8.6-a+i8mm": "max,sve=off,sme=off",
}

_INSTALL = "apt-get install qemu-user   (Debian, Ubuntu); then: sparrow doctor"
_ELF_MAGIC, _AARCH64 = b"\x7fELF", 183
_POLL_SECONDS = 0.01
# Addresses decide what collides in a cache and how an allocator lays things out. A guest that shares the randomized
# address space of its emulator differs from run to run; one with 39 bits of its own, which arm64 phones have, does not.
_REPEATABLE = ["-R", hex(1 << 39), "-seed", "1"]


@dataclass(frozen=True)
class Qemu:
    """The emulator that was found.

    Attributes:
        executable: Path of ``qemu-aarch64``.
        version: Its version, such as ``7.2.22``.
        plugins: It was built with plugins, which count fast; without them its execution log is counted.
    """

    executable: str
    version: str
    plugins: bool

    @property
    def plugin_api(self) -> int:
        """Version of the plugin interface to build for: 9.0 and 9.1 each broke it."""
        release = tuple(int(part) for part in self.version.split(".")[:2])
        return 1 if release < (9, 0) else 2 if release < (9, 1) else 3


@dataclass(frozen=True)
class Cache:
    """Geometry of a data cache; the least recently used line of a set gives way.

    Attributes:
        bytes: Its size.
        ways: Lines of a set.
        line: Bytes of a line, a power of two.
    """

    bytes: int
    ways: int
    line: int

    def __post_init__(self) -> None:
        possible = min(self.bytes, self.ways, self.line) >= 1 and self.line.bit_count() == 1
        if not possible or self.bytes % (self.ways * self.line):
            raise SparrowError(
                f"a cache of {self.bytes} bytes in {self.ways} ways of lines of {self.line} bytes",
                expected="a line of a power of two, a size that is a multiple of ways times line",
            )


@dataclass(frozen=True)
class MemoryCounts:
    """Loads and stores of one thread in one section. QEMU splits those of 16 bytes in two.

    Attributes:
        loads: Loads.
        stores: Stores.
        bytes_loaded: Bytes that they loaded.
        bytes_stored: Bytes that they stored.
    """

    loads: int
    stores: int
    bytes_loaded: int
    bytes_stored: int


@dataclass(frozen=True)
class CacheMisses:
    """What the simulated data caches of one thread lacked in one section.

    Attributes:
        l1: Lines that the first level lacked.
        l2: Lines that the second level lacked as well.
    """

    l1: int
    l2: int


@dataclass(frozen=True)
class Section:
    """A section of the regions, all repetitions together: section 0 is what comes before the first ``hint #122``.

    Attributes:
        tasks: Tasks taken from a shared list, ``hint #123``; 0 if the program divides its work beforehand.
        instructions: By thread, the main thread first.
        memory: By thread; empty unless memory was watched.
        caches: Misses, ``[cache hierarchy][thread]``; empty unless caches were simulated.
        lists: Instructions of each task, in the order of taking, by list that was handed out, ``hint #124``, in the
            first region; empty where there was none, or QEMU has no plugins.
    """

    tasks: int
    instructions: tuple[int, ...]
    memory: tuple[MemoryCounts, ...] = ()
    caches: tuple[tuple[CacheMisses, ...], ...] = ()
    lists: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ExecutedBlock:
    """A straight run of instructions that was executed in the regions.

    Attributes:
        code: Its instructions, 4 bytes each, little-endian.
        executions: How often it was executed, ``[section][thread]``, all regions together.
    """

    code: bytes
    executions: tuple[tuple[int, ...], ...]

    @property
    def instructions(self) -> int:
        """Instructions of one execution."""
        return len(self.code) // 4


@dataclass(frozen=True)
class InstructionCounts:
    """Instructions that a program retired, by guest thread; the main thread is the first.

    Attributes:
        program: Of the whole program, one figure a thread.
        regions: Of each region between ``hint #120`` and ``hint #121``, in order, one figure a thread.
        sections: What the regions are made of; each thread's instructions add up to those of its regions. At least
            one if there is a region.
        blocks: What was executed in the regions, one entry for each sequence of bytes, ordered by them; empty
            unless data caches were given to simulate.
    """

    program: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...]
    sections: tuple[Section, ...]
    blocks: tuple[ExecutedBlock, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """What a program did.

    Attributes:
        exit_code: Its exit code.
        stdout: What it printed.
        stderr: What it printed to standard error.
        counts: Instructions retired, if they were asked for.
        peak_memory_bytes: Most memory that was resident at once, from the start of the program to its end, if memory
            was watched: pages of 4096 bytes that it ran code in, loaded from or stored to, until it gave them back
            (``munmap``, ``mremap``, ``madvise``, ``brk``). It repeats exactly and holds nothing of the emulator; what
            a kernel reads ahead of a program is not in it.
    """

    exit_code: int
    stdout: str
    stderr: str
    counts: InstructionCounts | None
    peak_memory_bytes: int | None = None


def find_qemu() -> Qemu:
    """Find ``qemu-aarch64`` on the search path.

    Raises:
        SparrowError: It is not installed, or does not run.
    """
    executable = shutil.which("qemu-aarch64")
    if executable is None:
        raise SparrowError("qemu-aarch64 is not installed", expected="QEMU 7.2 or newer", next_step=_INSTALL)
    try:
        text, usage = (
            subprocess.run([executable, option], capture_output=True, text=True, timeout=30, check=True).stdout
            for option in ("--version", "-h")
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SparrowError(f"{executable} does not run: {error}", next_step=_INSTALL) from error
    version = re.search(r"version (\d+\.\d+[.\d]*)", text)
    if version is None:
        raise SparrowError(f"{executable} names no version: {text[:80]!r}", next_step=_INSTALL)
    return Qemu(executable, version[1], "-plugin" in usage)


def cpu_model(cpu: str) -> str:
    """QEMU's name for a core or architecture level.

    Raises:
        SparrowError: It is not in ``CPU_MODELS``.
    """
    if cpu not in CPU_MODELS:
        raise SparrowError(f"no CPU model for {cpu!r}", expected=near_names(cpu, CPU_MODELS))
    return CPU_MODELS[cpu]


def build_plugin(qemu: Qemu) -> Path:
    """Compile the instruction counter for this machine, or take it from the cache.

    Args:
        qemu: Emulator that will load it.

    Returns:
        Shared library.

    Raises:
        SparrowError: There is no C compiler, or it failed; nothing can be counted then.
    """
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread",
             f"-DPLUGIN_API={qemu.plugin_api}"]  # fmt: skip
    library = cache_dir() / "qemu-plugins" / f"instruction_counter-{source_key([PLUGIN_SOURCE], *flags)}.so"
    if library.exists():
        return library
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    make_folder(library.parent)
    with atomic_file(library) as temporary:
        result = subprocess.run([*compiler, *flags, str(PLUGIN_SOURCE), "-o", str(temporary)],
                                capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)  # fmt: skip
        if result.returncode:
            raise SparrowError(
                f"instructions cannot be counted: {' '.join(compiler)} failed\n{result.stderr.strip()[-2000:]}",
                expected="a C compiler for this machine, which builds the counter that QEMU loads",
                next_step="apt-get install gcc   (or: pip install 'ziglang>=0.14,<0.18')",
            )
    return library


class _LogCounter:
    """Counts what QEMU writes to a pipe, in a thread, so that a log of gigabytes needs no disk."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        self._pool = ThreadPoolExecutor(1)

    def start(self) -> None:
        """Begin to read; QEMU has its own end of the pipe by now."""
        os.close(self.write_end)
        self._future = self._pool.submit(self._read)
        self._pool.shutdown(wait=False)

    def result(self) -> dict[str, Any]:
        """Wait for the end of the log."""
        try:
            return self._future.result()
        except (LookupError, ValueError) as error:
            raise SparrowError(
                f"the execution log of QEMU {find_qemu().version} is not understood: {error!r}",
                expected="the log of QEMU 7.2 to 10.0",
                next_step="use a QEMU with plugins, Debian 12's qemu-user for example: they count without the log",
            ) from error

    def _read(self) -> dict[str, Any]:
        with os.fdopen(self._read_end, "rb", buffering=1 << 20) as log:
            return count_instructions(log)


class QemuProcess:
    """A program that runs under QEMU; leaving the ``with`` block kills whatever of it still runs.

    Args:
        program: aarch64 Linux executable.
        arguments: Its arguments.
        cpu: Core or architecture level, a key of ``CPU_MODELS``.
        timeout: Seconds after which it is taken to hang.
        count: Also count instructions.
        memory: Also watch loads, stores and resident memory. Implies ``count``.
        caches: First and second level of data cache to simulate, any number of such hierarchies in one run; executed
            blocks are recorded too. Implies ``memory``.
        sysroot: Folder that stands for ``/`` wherever it has the file that the program opens; QEMU's ``-L``.
        environment: Environment of the program.

    Raises:
        SparrowError: The program is not for aarch64, or QEMU or a compiler for the counter is missing, or more than
            instructions is asked of a QEMU without plugins.
    """

    def __init__(
        self, program: Path, arguments: Sequence[str] = (), *, cpu: str, timeout: float = 600, count: bool = False,
        memory: bool = False, caches: Sequence[tuple[Cache, Cache]] = (), sysroot: Path | None = None,
        environment: Mapping[str, str] = {},
    ) -> None:  # fmt: skip
        model = cpu_model(cpu)
        _check_executable(program)
        qemu = find_qemu()
        memory = memory or bool(caches)
        if memory and not qemu.plugins:
            raise SparrowError(
                f"QEMU {qemu.version} was built without plugins: it counts instructions and nothing else",
                expected="a QEMU with plugins, such as the one of Debian 12's qemu-user",
                next_step="do without memory counts and predictions, or install such a QEMU",
            )
        count = count or memory
        plugin = build_plugin(qemu) if count and qemu.plugins else None
        self._program, self._cpu, self._timeout = program, cpu, timeout
        self._scratch = tempfile.TemporaryDirectory(prefix="sparrow-qemu-")
        folder = Path(self._scratch.name)
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        self._counts = folder / "counts.json" if plugin else None
        self._log = _LogCounter() if count and not plugin else None
        command = [qemu.executable, "-cpu", model, *(_REPEATABLE if count else [])]
        if plugin is not None:
            # A comma separates the options of a plugin; two stand for one in a file's name.
            library, output = (str(path).replace(",", ",,") for path in (plugin, folder / "counts.json"))
            options = [library, f"output={output}", *["memory=1"] * memory, *["blocks=1"] * bool(caches)]
            for pair in caches:
                levels = (f"{cache.bytes}:{cache.ways}:{cache.line}" for cache in pair)
                options.append(f"cache={':'.join(levels)}")
            command += ["-plugin", ",".join(options)]
        if self._log is not None:
            command += ["-d", LOG_ITEMS, "-D", f"/dev/fd/{self._log.write_end}"]
        if sysroot is not None:
            command += ["-L", str(sysroot)]
        # QEMU reads options from the environment and hands all of it to the program, whose start-up code walks
        # through it: without the user's, a result depends on nothing else and whole programs count alike. What the
        # program's loader heeds must not reach that of QEMU itself.
        inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        for name in sorted(environment):
            if name.startswith("LD_"):
                command += ["-E", f"{name}={environment[name]}"]
            else:
                inherited[name] = environment[name]
        # Output goes to files: a pipe that nobody reads would stop the program. An own session makes a process group
        # of the program and its children, so that all can be killed, and keeps Ctrl-C for this process to handle.
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*command, str(program.absolute()), *arguments], stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=stderr, env=inherited, start_new_session=True,
                pass_fds=[self._log.write_end] if self._log else [],
            )  # fmt: skip
        if self._log is not None:
            self._log.start()
        self._deadline = time.monotonic() + timeout

    def __enter__(self) -> "QemuProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        self._process.wait()
        self._scratch.cleanup()

    def _kill(self) -> None:
        # Also after a normal end: children that the program left behind are still in its group.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def poll(self) -> RunResult | None:
        """What the program did if it has ended, ``None`` while it runs.

        Raises:
            SparrowError: It runs longer than its time limit, was ended by a signal, or its marks do not match.
        """
        code = self._process.poll()
        if code is None:
            if time.monotonic() > self._deadline:
                raise SparrowError(
                    f"{self._program} ran for more than {self._timeout:g} s under QEMU and was stopped",
                    next_step="raise the time limit if the network is large; otherwise report a hang",
                )
            return None
        stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in (self._stdout, self._stderr))
        document: dict[str, Any] = {}
        if self._log is not None:
            self._kill()  # whoever still holds the log open would keep it from ending
            document = self._log.result()
        if code < 0:
            raise self._crash(-code, stderr)
        if self._counts is not None:
            try:
                document = json.loads(self._counts.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SparrowError(
                    f"QEMU wrote no instruction counts (exit {code})\n{stderr.strip()[-2000:]}",
                    expected="a program that ends by itself",
                    next_step="check the free space of the folder for temporary files",
                ) from error
        counts = _read_counts(document) if document else None
        return RunResult(code, stdout, stderr, counts, document.get("peak_memory_bytes"))

    def _crash(self, number: int, stderr: str) -> SparrowError:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        illegal = f"it uses an instruction that {self._cpu} lacks: choose another CPU, or compile for this one"
        return SparrowError(
            f"{self._program} was ended by {name} under QEMU (CPU {self._cpu})\n{stderr.strip()[-2000:]}".rstrip(),
            next_step=illegal if number == signal.SIGILL else "report it with the model and the command",
        )


def run(
    program: Path, arguments: Sequence[str] = (), *, cpu: str, timeout: float = 600, count: bool = False,
    memory: bool = False, caches: Sequence[tuple[Cache, Cache]] = (), sysroot: Path | None = None,
    environment: Mapping[str, str] = {},
) -> RunResult:  # fmt: skip
    """Run an aarch64 Linux program to its end.

    Args:
        program: Executable.
        arguments: Its arguments.
        cpu: Core or architecture level, a key of ``CPU_MODELS``.
        timeout: Seconds after which it is stopped.
        count: Also count instructions, by thread, of the program and of the regions and sections that it marks.
        memory: Also watch its loads, stores and resident memory. Implies ``count``.
        caches: First and second level of data cache to simulate, any number of such hierarchies in one run, whose
            misses are in the same order; the executed blocks of the regions are recorded too. Implies ``memory``.
        sysroot: Folder that stands for ``/`` wherever it has the file that the program opens; QEMU's ``-L``.
        environment: Environment of the program.

    Returns:
        Exit code, output and counts. An exit code other than 0 raises nothing.

    Raises:
        SparrowError: The program is not for aarch64, crashed or hung, or QEMU is missing.
    """
    with QemuProcess(program, arguments, cpu=cpu, timeout=timeout, count=count, memory=memory, caches=caches,
                     sysroot=sysroot, environment=environment) as process:  # fmt: skip
        while (result := process.poll()) is None:
            time.sleep(_POLL_SECONDS)
        return result


def _check_executable(program: Path) -> None:
    compile_again = "compile the network again with: sparrow compile model.onnx --target TARGET -o FOLDER"
    try:
        with program.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        raise SparrowError(f"cannot read {program}: {error.strerror}", next_step=compile_again) from error
    if header[:4] != _ELF_MAGIC or len(header) < 20:
        raise SparrowError(f"{program} is no ELF executable", next_step=compile_again)
    machine = int.from_bytes(header[18:20], "little")
    if machine != _AARCH64 or header[4] != 2 or header[5] != 1:
        raise SparrowError(f"{program} is for another architecture (ELF machine {machine})",
                           expected=f"64-bit little-endian ARM (ELF machine {_AARCH64})",
                           next_step=compile_again)  # fmt: skip
    # QEMU would end with exit code 1 and say nothing.
    if not os.access(program, os.X_OK):
        raise SparrowError(f"{program} is not executable", next_step=f"chmod +x '{program}'")


def _read_counts(document: dict[str, Any]) -> InstructionCounts:
    """Read what ``instruction_counter.c`` or ``execution_log`` counted."""
    if document["unbalanced_marks"]:
        raise SparrowError(
            f"{document['unbalanced_marks']} region marks of the program have no partner",
            expected="hint #120 and hint #121 in turn",
            next_step="compile the network again with this version of Sparrow",
        )
    sections = tuple(
        Section(
            section["tasks"],
            tuple(section["instructions"]),
            tuple(MemoryCounts(*counts) for counts in section.get("memory", [])),
            tuple(tuple(CacheMisses(*misses) for misses in threads) for threads in section.get("caches", [])),
            tuple(tuple(tasks) for tasks in section.get("lists", [])),
        )
        for section in document["sections"]
    )
    return InstructionCounts(
        tuple(document["program"]),
        tuple(tuple(region) for region in document["regions"]),
        sections,
        _merged_blocks(document.get("blocks", []), len(sections), len(document["program"])),
    )


def _merged_blocks(blocks: list[dict[str, Any]], sections: int, threads: int) -> tuple[ExecutedBlock, ...]:
    """One block for each sequence of bytes: the same function may lie at several addresses, or be translated twice."""
    executions: dict[str, dict[int, tuple[int, ...]]] = {}
    for block in blocks:
        known = executions.setdefault(block["code"], {})
        for section, counts in ((int(name), tuple(counts)) for name, counts in block["executions"].items()):
            known[section] = tuple(map(add, known[section], counts)) if section in known else counts
    nothing = (0,) * threads
    return tuple(
        ExecutedBlock(bytes.fromhex(code), tuple(executions[code].get(section, nothing) for section in range(sections)))
        for code in sorted(executions)
    )

"""Cross compilers: which one is used, how it is called, and what to do when it is missing."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparrow.kernels.errors import SparrowError, near_names

# Instruction set of a kernel file -> clang's name for the CPU that has it. The scalar twins are compiled like NEON.
ZIG_CPU = {
    "scalar": "generic",
    "scalar_fp16": "generic",
    "neon": "cortex_a53-crc-aes-sha2",  # the instructions of every core, in an order that suits those that run in order
    "neon_dotprod": "generic+dotprod",
    "neon_fp16": "generic+fullfp16",
    "neon_i8mm": "generic+dotprod+i8mm",
}
GCC_ARCH = {
    "scalar": "armv8-a",
    "scalar_fp16": "armv8-a",
    "neon": "armv8-a",
    "neon_dotprod": "armv8.2-a+dotprod",
    "neon_fp16": "armv8.2-a+fp16",
    "neon_i8mm": "armv8.2-a+dotprod+i8mm",
}

# Inner loops run at the rate of loads and multiplications. A pair of loads, or one that moves its address on, takes the
# place of several on small cores and saves nothing on large ones.
ZIG_FLAGS = ("-mllvm", "-aarch64-enable-ldst-opt=false")

# -ffp-contract=off keeps a scalar twin and its NEON form equal to the last bit: fused only where the code says fma.
C_FLAGS = ("-std=c11", "-O3", "-g0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno", "-fPIC",
           "-ffunction-sections", "-fdata-sections", "-fvisibility=hidden", "-fno-sanitize=all")  # fmt: skip

# For the code that handles sizes and texts from outside: the runtime, sparrow_run and the program's own steps. Kernels
# go without: they are inner loops over sizes that were checked before. Return addresses are signed by hints, which do
# nothing before Armv8.3. No _FORTIFY_SOURCE: the objects serve every C library, and it calls functions of glibc's.
HARDENING_FLAGS = ("-fstack-protector-strong", "-mbranch-protection=pac-ret", "-Wformat=2")
_HARDENED_LINK = ("-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack")


@dataclass(frozen=True)
class Toolchain:
    """One C compiler that makes aarch64 Linux programs.

    Attributes:
        name: ``zig`` (clang with musl; static results also run on Android) or ``gcc``.
        compiler: Command that compiles and links.
        archiver: Command that makes static libraries.
        version: The compiler's own version line.
    """

    name: str
    compiler: tuple[str, ...]
    archiver: tuple[str, ...]
    version: str

    @property
    def identity(self) -> str:
        """Everything about this compiler that its object files depend on, for cache keys."""
        return f"{self.version} {C_FLAGS} {(ZIG_CPU, ZIG_FLAGS) if self.name == 'zig' else GCC_ARCH}"

    def compile(self, source: Path, output: Path, *, isa: str = "neon", flags: Sequence[str] = ()) -> None:
        """Compile one C or assembly file to an object file.

        Args:
            source: File to compile.
            output: Object file to write.
            isa: Instruction set, a key of ``ZIG_CPU``.
            flags: Further flags, include paths for example.

        Raises:
            SparrowError: The compiler failed; its messages are in the error.
        """
        options = [*C_FLAGS, *(ZIG_FLAGS if self.name == "zig" else ()), *flags]
        # In the source's folder: zig cannot read a list of dependencies with quotation marks in a path.
        run_compiler([*self.compiler, *self._static_target(isa), *options, "-c", f"./{source.name}", "-o",
                      str(output.absolute())], folder=source.parent)  # fmt: skip

    def link_executable(self, inputs: Sequence[Path], output: Path) -> None:
        """Link a static executable that needs nothing but the kernel of the operating system."""
        files = map(str, inputs)
        run_compiler([*self.compiler, *self._static_target("neon"), "-static", "-Wl,--gc-sections", "-Wl,-s",
                      *_HARDENED_LINK, "-Wl,-z,max-page-size=16384", *files, "-lm", "-pthread", "-o",
                      str(output)])  # fmt: skip

    def link_shared(self, inputs: Sequence[Path], output: Path, *, exports: Sequence[str]) -> None:
        """Link a shared library for glibc 2.17 or newer, the oldest with aarch64.

        Args:
            inputs: Object files and libraries.
            output: Library to write.
            exports: Patterns of the symbols that stay visible.
        """
        target = ("-target", "aarch64-linux-gnu.2.17") if self.name == "zig" else ()
        link_shared((*self.compiler, *target), inputs, output, exports=exports, libraries=("-lm", "-lpthread"))

    def archive(self, objects: Sequence[Path], output: Path) -> None:
        """Put object files into a static library, without timestamps so that equal inputs give equal bytes."""
        output.unlink(missing_ok=True)
        run_compiler([*self.archiver, "rcsD", str(output), *map(str, objects)])

    def _static_target(self, isa: str) -> tuple[str, ...]:
        if self.name == "zig":
            return ("-target", "aarch64-linux-musl", f"-mcpu={ZIG_CPU[isa]}")
        return (f"-march={GCC_ARCH[isa]}",)


def link_shared(
    linker: Sequence[str], inputs: Sequence[Path], output: Path, *, exports: Sequence[str], libraries: Sequence[str]
) -> None:
    """Link a shared library that is known by its file's name and also loads where a page has 16 KB.

    Args:
        linker: Compiler that links, with the options that name the system it links for.
        inputs: Object files and libraries.
        output: Library to write.
        exports: Patterns of the symbols that stay visible.
        libraries: Options for the system's libraries.

    Raises:
        SparrowError: The linker failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        script.write(f"{{ global: {' '.join(f'{pattern};' for pattern in exports)} local: *; }};\n")
        script.flush()
        run_compiler([*linker, "-shared", "-Wl,--gc-sections", "-Wl,-s", "-Wl,-z,defs", "-Wl,-z,max-page-size=16384",
                      *_HARDENED_LINK, f"-Wl,-soname,{output.name}", "-Xlinker", f"--version-script={script.name}",
                      *map(str, inputs), *libraries, "-o", str(output)])  # fmt: skip


def run_compiler(command: Sequence[str], *, folder: Path | None = None) -> None:
    """Run a compiler, linker or archiver.

    Args:
        command: Program and arguments.
        folder: Where it runs, by default in the working folder.

    Raises:
        SparrowError: It failed; its messages are in the error.
    """
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder, check=False)
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-20:])
        raise SparrowError(
            f"the cross compiler failed (exit {result.returncode}):\n{' '.join(command)}\n{tail}",
            next_step="check free disk space and the compiler with: sparrow doctor",
        )


def _zig() -> Toolchain | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    zig = (sys.executable, "-m", "ziglang")
    version = subprocess.run([*zig, "version"], capture_output=True, text=True, check=True).stdout.strip()
    return Toolchain("zig", (*zig, "cc"), (*zig, "ar"), f"zig {version}")


def _gcc() -> Toolchain | None:
    compiler, archiver = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("aarch64-linux-gnu-ar")
    if compiler is None or archiver is None:
        return None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return Toolchain("gcc", (compiler,), (archiver,), version.splitlines()[0])


TOOLCHAINS = {"zig": _zig, "gcc": _gcc}


def find_toolchain(name: str | None = None) -> Toolchain:
    """Find the cross compiler.

    Args:
        name: ``zig`` or ``gcc``; by default the environment's ``SPARROW_TOOLCHAIN``, else the first installed.

    Returns:
        A compiler that was found on this machine.

    Raises:
        SparrowError: It is unknown or not installed; the message has the command that installs it.
    """
    name = name or os.environ.get("SPARROW_TOOLCHAIN")
    if name is not None and name not in TOOLCHAINS:
        raise SparrowError(f"unknown toolchain {name!r}", expected=near_names(name, TOOLCHAINS))
    for candidate in [name] if name else list(TOOLCHAINS):
        if (toolchain := TOOLCHAINS[candidate]()) is not None:
            return toolchain
    raise SparrowError(
        f"no cross compiler for aarch64 was found (looked for {', '.join([name] if name else TOOLCHAINS)})",
        expected="the Python package ziglang, or Debian's gcc-aarch64-linux-gnu",
        next_step="pip install 'ziglang>=0.14,<0.18'   (or: apt-get install gcc-aarch64-linux-gnu)",
    )


def source_key(files: Sequence[Path], *extra: str) -> str:
    """Hash file contents and further text into a cache key of 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in extra:
        digest.update(text.encode() + b"\0")
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]

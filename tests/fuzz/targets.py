"""Builds the fuzz targets in C for this machine, where the kernels are their scalar twins."""

import subprocess
from pathlib import Path

from sparrow.kernels.build import INCLUDE_DIR, native_sources

HERE = Path(__file__).parent
TARGETS = ("fuzz_program", "fuzz_runner")

_RUNTIME = INCLUDE_DIR / "runtime"
# Numbers of hostile weights may overflow, and wrap as on the cores; an access outside a buffer is what must not happen.
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fwrapv",
          "-fno-omit-frame-pointer", f"-I{INCLUDE_DIR}", f"-I{_RUNTIME}")  # fmt: skip
_STRICT = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build(folder: Path, compiler: str, *, sanitizers: str = "address", driver: bool = True) -> dict[str, Path]:
    """Build every target.

    Args:
        folder: Where programs and object files are put.
        compiler: C compiler for this machine.
        sanitizers: Of the kernels, of which ``undefined`` takes long to compile; the rest gets both.
        driver: Whether to link the driver of this folder, or libFuzzer.

    Returns:
        Program of each target.
    """
    fuzzer = [] if driver else ["-fsanitize=fuzzer-no-link"]
    objects: dict[str, Path] = {}
    runtime = [_RUNTIME / "runtime.c", _RUNTIME / "thread_pool.c"]
    own = [*(HERE / f"{target}.c" for target in TARGETS), *([HERE / "driver.c"] if driver else [])]
    for source in [*(source.path for source in native_sources()), *runtime, *own]:
        kernel = source.is_relative_to(INCLUDE_DIR) and source not in runtime and source.name != "formats.c"
        flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if kernel else _STRICT
        objects[source.stem] = folder / f"{source.stem}.o"
        _run([compiler, *_FLAGS, *flags, *fuzzer, "-c", str(source), "-o", str(objects[source.stem])])
    programs = {}
    for target in TARGETS:
        left_out = {*TARGETS, *(["formats"] if target == "fuzz_program" else [])} - {target}
        linked = [str(path) for name, path in objects.items() if name not in left_out]
        programs[target] = folder / target
        engine = [] if driver else ["-fsanitize=fuzzer"]
        _run([compiler, *_STRICT, *engine, *linked, "-lm", "-pthread", "-o", str(folder / target)])
    return programs


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[-4000:]}"

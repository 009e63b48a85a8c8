"""Every operator in C: against numpy, the vector kernels against their scalar twins, and what the checks refuse."""

import ctypes
import dataclasses
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sparrow.deploy.toolchain import Toolchain, find_toolchain
from sparrow.kernels.build import INCLUDE_DIR, kernel_sources, native_sources
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.formats import WeightFormat, pack_weights, unpack_weights
from sparrow.kernels.reference import QA8, Conv2dOperator

from .kernel_cases import Shape, make_operator, make_weights, resigned, write_cases

CHECK_PROGRAM = Path(__file__).parent / "check_kernels.c"
HOST_FLAGS = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{INCLUDE_DIR}"]
CPUS = {"cortex-a53": 1, "cortex-a76": 7, "max,sve=off,sme=off": 15}


@pytest.fixture(scope="module")
def case_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.bin"
    assert write_cases(path) > 500
    return path


@pytest.fixture(scope="module")
def host_compiler() -> str:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc for this machine")
    return compiler


def compile_for_host(compiler: str, output: Path, sources: list[Path], *flags: str) -> Path:
    command = [compiler, *HOST_FLAGS, *flags, *map(str, sources), "-lm", "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output


def test_scalar_twins_compute_what_numpy_does(host_compiler: str, case_file: Path, tmp_path: Path) -> None:
    sanitizers = "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1"
    sources = [CHECK_PROGRAM, *(source.path for source in native_sources())]
    program = compile_for_host(host_compiler, tmp_path / "check_kernels", sources, *sanitizers)
    result = subprocess.run([program, case_file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def check_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The check program for aarch64, with every kernel in it."""
    toolchain = find_toolchain()
    folder = tmp_path_factory.mktemp("aarch64")
    units = [(CHECK_PROGRAM, "neon"), *((source.path, source.isa) for source in kernel_sources())]
    flags = [f"-I{INCLUDE_DIR}", "-D_GNU_SOURCE"]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda unit: compile_for_target(toolchain, folder, *unit, flags), units))
    toolchain.link_executable(objects, folder / "check_kernels")
    return folder / "check_kernels"


def compile_for_target(toolchain: Toolchain, folder: Path, source: Path, isa: str, flags: list[str]) -> Path:
    toolchain.compile(source, folder / f"{source.stem}.o", isa=isa, flags=flags)
    return folder / f"{source.stem}.o"


@pytest.mark.qemu
@pytest.mark.parametrize("cpu", CPUS)
def test_vector_kernels_equal_their_scalar_twins(cpu: str, check_program: Path, case_file: Path) -> None:
    result = subprocess.run(
        ["qemu-aarch64", "-cpu", cpu, check_program, case_file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(f"instruction sets {CPUS[cpu]}\n")


@pytest.fixture(scope="module")
def library(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output = tmp_path_factory.mktemp("host") / "kernels.so"
    path = compile_for_host(host_compiler, output, [source.path for source in native_sources()], "-shared", "-fPIC")
    library = ctypes.CDLL(str(path))
    library.spw_weights_check.restype = ctypes.c_char_p
    library.spw_conv2d_workspace.restype = ctypes.c_size_t
    return library


def check(library: ctypes.CDLL, operator: Conv2dOperator, data: bytes) -> str | None:
    aligned = np.zeros(len(data) + 64, np.uint8)
    start = -aligned.ctypes.data % 64
    aligned[start : start + len(data)] = np.frombuffer(data, np.uint8)
    address = ctypes.c_void_p(aligned.ctypes.data + start)
    text = library.spw_weights_check(operator.to_bytes(), address, ctypes.c_size_t(len(data)))
    return None if text is None else text.decode()


def example() -> tuple[Conv2dOperator, bytes]:
    rng = np.random.default_rng(0)
    operator = make_operator(Shape((8, 12), (4, 4), (3, 3)), QA8, float_output=False, rng=rng)
    return operator, pack_weights(make_weights(operator, WeightFormat.CB4T, rng))


def test_every_changed_bit_of_the_header_is_refused(library: ctypes.CDLL) -> None:
    operator, data = example()
    assert check(library, operator, data) is None
    for bit in range(64 * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert check(library, operator, bytes(changed)), f"bit {bit}"
    assert check(library, operator, data[:-1] + b"\x01") == "packed weights have a wrong checksum"
    assert check(library, operator, data[:40]) == "packed weights are shorter than their header"


@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (6, b"\x03", "another type"),
        (7, b"\x02", "made of rows"),
        (7, b"\x03", "unknown block pattern"),
        (8, struct.pack("<I", 13), "another shape"),
        (24, b"\x08\0", "panel width"),
        (56, struct.pack("<I", 64), "list of blocks"),
        (26, b"\0\0", "codebook"),
        (28, struct.pack("<I", 0xFFFFFFC0), "outside"),
        (32, struct.pack("<I", 65), "outside"),
        (36, struct.pack("<I", 16), "outside"),
        (40, struct.pack("<I", 0), "outside"),
    ],
)
def test_signed_nonsense_is_refused(library: ctypes.CDLL, offset: int, field: bytes, message: str) -> None:
    operator, data = example()
    assert message in (check(library, operator, resigned(data, offset, field)) or "accepted")


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (0, struct.pack("<I", 1)),  # the first panel begins late
        (4, struct.pack("<I", 200)),  # more blocks than the section holds
        (8, struct.pack("<I", 0)),  # a panel ends before it begins
        (16, b"\x12"),  # the first tap is outside the window
        (17, b"\0"),  # a tap comes twice, so that a panel may have more blocks than taps
        (17, b"\xff"),
    ],
)
def test_signed_nonsense_in_the_list_of_blocks_is_refused(library: ctypes.CDLL, at: int, field: bytes) -> None:
    rng = np.random.default_rng(0)
    operator = make_operator(Shape((8, 12), (4, 4), (3, 3)), QA8, float_output=False, rng=rng)
    data = pack_weights(make_weights(operator, WeightFormat.CB4T, rng, zero_blocks=0.5))
    assert check(library, operator, data) is None
    (begin,) = struct.unpack_from("<I", data, 56)
    changed = resigned(data, begin + at, field)
    assert check(library, operator, changed) == "packed weights have a list of blocks that does not fit their shape"
    with pytest.raises(SparrowError, match="list of blocks"):
        unpack_weights(changed)


def test_weights_of_another_operator_are_refused(library: ctypes.CDLL) -> None:
    operator, data = example()
    other = dataclasses.replace(operator, kernel_height=1)
    assert check(library, other, data) == "packed weights have another shape than the operator"


def test_rows_of_a_dilated_window_are_refused(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    operator = make_operator(Shape((3, 12), (9, 9), (3, 3)), QA8, float_output=False, rng=rng)
    data = pack_weights(make_weights(operator, WeightFormat.CB4T, rng, by_rows=True))
    assert check(library, operator, data) is None
    assert "made of rows" in (check(library, dataclasses.replace(operator, dilation_height=2), data) or "accepted")


def test_workspace_stays_in_the_caches(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    early = make_operator(Shape((3, 64), (224, 224), (7, 7), (2, 2), pad=(3,) * 4), QA8, float_output=False, rng=rng)
    deep = make_operator(Shape((512, 512), (7, 7), (3, 3), pad=(1,) * 4), QA8, float_output=False, rng=rng)
    assert library.spw_conv2d_workspace(early.to_bytes()) < 128 * 1024
    assert library.spw_conv2d_workspace(deep.to_bytes()) < 256 * 1024

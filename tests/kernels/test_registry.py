"""The list of micro-kernels, their names, files and headers."""

import re
import shutil
import subprocess

import pytest

from sparrow.kernels.build import INCLUDE_DIR, kernel_sources, native_sources
from sparrow.kernels.registry import KERNELS, NAME, MicroKernel, read_kernel_list

GUARDS = {
    "neon": "__ARM_NEON",
    "neon_dotprod": "__ARM_FEATURE_DOTPROD",
    "neon_fp16": "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC",
    "neon_i8mm": "__ARM_FEATURE_MATMUL_INT8",
}
by_symbol = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.symbol)


@by_symbol
def test_names_follow_the_grammar(kernel: MicroKernel) -> None:
    assert NAME.fullmatch(kernel.name)
    has_tile = kernel.channels > 1
    assert has_tile == (kernel.isa in GUARDS and kernel.role not in ("CB4T", "CB2T"))


@by_symbol
def test_its_file_defines_it_and_refuses_other_processors(kernel: MicroKernel) -> None:
    text = kernel.path.read_text()
    assert f"\nvoid {kernel.symbol}(" in text
    assert len(text.splitlines()) <= 250
    if kernel.isa in GUARDS:
        for header in re.findall(r'^#include "(\w+_neon\.h)"$', text, re.MULTILINE):
            text += (INCLUDE_DIR / "conv" / header).read_text()
        assert re.search(rf"#ifndef {GUARDS[kernel.isa]}\n#error", text)


@by_symbol
def test_every_kernel_has_a_scalar_twin(kernel: MicroKernel) -> None:
    isa = "scalar_fp16" if kernel.isa.endswith("fp16") else "scalar"
    twins = [twin for twin in KERNELS if twin.role == kernel.role and twin.isa == isa]
    assert len(twins) == 1
    assert kernel.name.startswith(twins[0].name)


def test_the_scalar_twin_comes_last_in_its_role() -> None:
    last = {kernel.role: kernel.isa for kernel in KERNELS}
    assert set(last.values()) == {"scalar"}


def test_no_kernel_is_listed_twice_and_no_file_is_unlisted() -> None:
    symbols = [kernel.symbol for kernel in KERNELS]
    assert len(symbols) == len(set(symbols))
    listed = {kernel.path for kernel in KERNELS}
    files = {source.path for source in kernel_sources() if "__" in source.path.stem}
    assert listed == files


def test_a_list_is_read_line_by_line() -> None:
    text = "// SPW_KERNEL(NO, spw_no, neon)\nSPW_KERNEL(CONV_QA8, spw_conv_clamp_qa8t_qa8t_qs8c_8x8, neon_dotprod)\n"
    assert read_kernel_list(text) == [
        MicroKernel("CONV_QA8", "spw_conv_clamp_qa8t_qa8t_qs8c_8x8", "neon_dotprod", 8, 8)
    ]


def test_sources_name_their_instruction_set() -> None:
    isa = {source.path.name: source.isa for source in kernel_sources()}
    assert isa["conv2d.c"] == "neon"
    assert isa["spw_conv_qa8t_qs8c_16x4__neon_dotprod.c"] == "neon_dotprod"
    assert not any("runtime" in str(source.path) for source in kernel_sources())
    assert {source.isa for source in native_sources()} == {"neon", "scalar", "scalar_fp16"}


@pytest.mark.parametrize(
    "header",
    [
        "spw.h", "formats.h", "conv/kernel.h", "conv/winograd.h", "conv/winograd_qa8.h", "conv/epilogue_scalar.h",
        "conv/window_rows.h", "conv/pairs.h",
    ],
)
def test_headers_compile_alone(header: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for this machine")
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-fsyntax-only", "-x", "c"]
    subprocess.run([*command, str(INCLUDE_DIR / header)], check=True)

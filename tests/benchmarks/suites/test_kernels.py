"""The benchmark of single micro-kernels."""

import shutil
from pathlib import Path

import pytest

from sparrow.benchmarks.predict.blocks import DISASSEMBLER, MCA
from sparrow.benchmarks.result_files import read_result, write_result
from sparrow.benchmarks.runners.qemu import CPU_MODELS, find_qemu
from sparrow.benchmarks.suites import kernels
from sparrow.benchmarks.suites.kernels import Call, bench_kernels, typical_calls, work_of
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.registry import KERNELS, MicroKernel

VECTOR_KERNELS = [kernel for kernel in KERNELS if not kernel.isa.startswith("scalar")]


@pytest.mark.parametrize("kernel", VECTOR_KERNELS, ids=lambda kernel: kernel.symbol)
def test_each_kernel_of_the_list_has_calls_with_work(kernel: MicroKernel) -> None:
    calls = typical_calls(kernel)
    assert len({name for name, _ in calls}) == len(calls) > 1
    for _, call in calls:
        work, unit = work_of(kernel, call)
        assert work > 0
        if kernel.role.startswith(("CONV", "GEMV", "DWCONV", "DWROWS")):
            assert unit == "MAC"


def test_every_cpu_model_says_what_it_runs() -> None:
    assert set(kernels.INSTRUCTION_SETS) == set(CPU_MODELS.values())
    known = {isa for sets in kernels.INSTRUCTION_SETS.values() for isa in sets}
    assert {kernel.isa for kernel in VECTOR_KERNELS} <= known


def test_work_is_that_of_the_shape() -> None:
    dense = MicroKernel("CONV_QA8", "spw_conv_clamp_qa8t_qa8t_qs8c_16x4", "neon_dotprod", 16, 4)
    assert work_of(dense, Call(16, 3, 1, 14, 28)) == (64 * 9 * 4 * 14 * 28, "MAC")
    pairs = MicroKernel("CONVPAIRS_QA8", "spw_convpairs_clamp_qa8t_qa8t_qs8c_12x8", "neon_i8mm", 12, 8)
    assert work_of(pairs, Call(8, 3, 1, 14, 28, 2)) == (64 * 9 * 8 * 14 * 28, "MAC")
    depthwise = MicroKernel("DWCONV_F16", "spw_dwconv_clamp_f16_f16_f16_16x4", "neon_fp16", 16, 4)
    assert work_of(depthwise, Call(1, 5, 2, 7, 7)) == (25 * 4 * 49, "MAC")


@pytest.mark.qemu
@pytest.mark.skipif(not all(map(shutil.which, (MCA, DISASSEMBLER))), reason="LLVM's tools are missing")
def test_kernels_are_counted_one_by_one(tmp_path: Path) -> None:
    if not find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins, which record executed blocks")
    of_matrices = [kernel for kernel in VECTOR_KERNELS if kernel.isa == "neon_i8mm"]
    result = bench_kernels(["cortex-a53", "cortex-a76"])
    paired = bench_kernels(["cortex-a710"], kernels=of_matrices)
    ran = {(row.kernel, row.cpu) for row in result.rows}
    symbols = {kernel.symbol for kernel in of_matrices}
    assert {kernel for kernel, _ in ran} == {kernel.symbol for kernel in VECTOR_KERNELS} - symbols
    assert {row.kernel for row in paired.rows} == symbols
    assert all(cpu == "cortex-a76" or kernel.endswith("__neon") for kernel, cpu in ran)
    for row in (*result.rows, *paired.rows):
        assert row.per_instruction == row.work / row.instructions and row.per_cycle == row.work / row.cycles
        # No kernel can be above its multiplication's work, nor above its core's limit.
        most = 32 if row.limited_by == "smmla (int8)" else 16
        assert row.limit is None or (row.per_instruction < most and row.per_cycle < 1.02 * row.limit)
    of_76 = {row.kernel: row for row in result.rows if row.cpu == "cortex-a76" and row.shape.startswith("64 inputs")}
    sdot = of_76["spw_conv_clamp_qa8t_qa8t_qs8c_16x4__neon_dotprod"]
    half = of_76["spw_conv_clamp_f16_f16_f16_16x8__neon_fp16"]
    assert sdot.limited_by == "sdot (int8)" and half.limited_by == "fmla (float16)"
    assert sdot.limit == pytest.approx(2 * half.limit, rel=0.02)
    write_result(result, tmp_path / "kernels.json")
    assert read_result(tmp_path / "kernels.json") == result


def test_an_unknown_core_is_refused() -> None:
    with pytest.raises(SparrowError, match="cortex-a67"):
        bench_kernels(["cortex-a67"])

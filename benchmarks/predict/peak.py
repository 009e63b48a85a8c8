"""The most multiply-accumulates that a core's pipeline model can do: the roof over every predicted layer."""

from collections.abc import Sequence

from sparrow.benchmarks.predict.blocks import cycles_per_execution
from sparrow.benchmarks.predict.core import Core
from sparrow.benchmarks.predict.predict import price
from sparrow.benchmarks.predict.work import Work
from sparrow.benchmarks.runners.qemu import cpu_model

# Instruction -> its encoding with v0, v30 and v31, and the multiply-accumulates that it does.
_INSTRUCTIONS = {
    "fmla (float32)": (0x4E3FCFC0, 4),
    "fmla (float16)": (0x4E5F0FC0, 8),
    "smlal (int8)": (0x0E3F83C0, 8),
    "smlal (int16)": (0x0E7F83C0, 4),
    "sdot (int8)": (0x4E9F97C0, 16),
    "smmla (int8)": (0x4E9FA7C0, 32),
}
# The fastest of each type that a core has, by QEMU's model of it.
_FASTEST = {
    "cortex-a53": ("fmla (float32)", "smlal (int8)"),
    "cortex-a72": ("fmla (float32)", "smlal (int8)"),
    "cortex-a76": ("fmla (float32)", "sdot (int8)"),
    "max,sve=off,sme=off": ("fmla (float32)", "smmla (int8)"),
}
_ACCUMULATORS = 24  # independent of one another, more than any latency needs


def peak_rates(core: Core, instruction_sets: str) -> dict[str, float]:
    """Multiply-accumulates a cycle, of a loop of nothing else, by instruction.

    Args:
        core: A core, with its figures.
        instruction_sets: What programs see of its SoC, a key of ``runners.qemu.CPU_MODELS``.

    Raises:
        SparrowError: LLVM's tools are missing or failed.
    """
    return multiply_rates(core, _FASTEST[cpu_model(instruction_sets)])


def multiply_rates(core: Core, names: Sequence[str]) -> dict[str, float]:
    """Multiply-accumulates a cycle, of a loop of nothing else, for chosen instructions.

    Args:
        core: A core, with its figures.
        names: Such as ``fmla (float16)`` or ``sdot (int8)``.

    Raises:
        SparrowError: LLVM's tools are missing or failed.
    """
    blocks = [
        b"".join((_INSTRUCTIONS[name][0] | register).to_bytes(4, "little") for register in range(_ACCUMULATORS))
        for name in names
    ]
    rates = {}
    for name, cycles in zip(names, cycles_per_execution(blocks, core.pipeline_model), strict=True):
        if cycles is not None:
            spent = price(Work(pipeline_cycles=cycles), core.figures).cycles
            rates[name] = _ACCUMULATORS * _INSTRUCTIONS[name][1] / spent
    return rates

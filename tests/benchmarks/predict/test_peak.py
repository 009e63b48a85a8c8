"""The roof of the roofline: what cores are known to do."""

import shutil

import pytest

from sparrow.benchmarks.predict import peak
from sparrow.benchmarks.predict.blocks import DISASSEMBLER, MCA, disassemble
from sparrow.benchmarks.predict.core import load_core
from sparrow.benchmarks.runners.qemu import CPU_MODELS

pytestmark = pytest.mark.skipif(not all(map(shutil.which, (MCA, DISASSEMBLER))), reason="LLVM's tools are missing")


def test_encodings_are_those_of_their_instructions() -> None:
    text = disassemble({encoding for encoding, _ in peak._INSTRUCTIONS.values()})
    for name, (encoding, _) in peak._INSTRUCTIONS.items():
        mnemonic, operands = text[encoding].split("\t")
        assert mnemonic == name.split()[0]
        assert operands.startswith("v0.") and "v30." in operands and "v31." in operands


def test_peaks_are_those_of_the_pipeline() -> None:
    # LLVM's Cortex-A55 issues two 64-bit halves of fmla and smlal a cycle, and one sdot of 128 bits.
    a55 = load_core("cortex-a55")
    factor = a55.figures.pipeline_factor
    plain, dot = peak.peak_rates(a55, "armv8-a"), peak.peak_rates(a55, "armv8.2-a+dotprod")
    assert plain["fmla (float32)"] * factor == pytest.approx(8, rel=0.02)
    assert plain["smlal (int8)"] * factor == pytest.approx(8, rel=0.02)
    assert dot["sdot (int8)"] * factor == pytest.approx(16, rel=0.02)


def test_every_cpu_has_a_roof() -> None:
    assert set(peak._FASTEST) == set(CPU_MODELS.values())

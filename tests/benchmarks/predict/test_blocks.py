"""Prices of blocks: the report's parser against golden text, and pipelines against latencies that Arm publishes."""

import shutil
import struct

import pytest

from sparrow.benchmarks.predict import blocks
from sparrow.kernels.errors import SparrowError

needs_llvm = pytest.mark.skipif(shutil.which(blocks.MCA) is None or shutil.which(blocks.DISASSEMBLER) is None,
                                reason=f"{blocks.MCA} predicts cycles: apt-get install llvm-19")  # fmt: skip

FMUL = 0x1E200800  # fmul s0, s0, s0: waits for the one before
NOP, UNKNOWN = 0xD503201F, 0xFFFFFFFF

REPORT = """
[0] Code Region - 3

Iterations:        100
Instructions:      200
Total Cycles:      403
Total uOps:        200

Dispatch Width:    2
uOps Per Cycle:    0.50
IPC:               0.50
Block RThroughput: 1.0


[1] Code Region - 12

Iterations:        100
Instructions:      700
Total Cycles:      1400
Total uOps:        700

Dispatch Width:    2
uOps Per Cycle:    0.50
IPC:               0.50
Block RThroughput: 3.5
"""


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def test_the_report_is_read() -> None:
    assert blocks.parse_report(REPORT) == {3: 403 / 200, 12: 2.0}
    assert blocks.parse_report("") == {}


@needs_llvm
def test_words_become_text() -> None:
    text = blocks.disassemble([FMUL, NOP, UNKNOWN, FMUL])
    assert {word: " ".join(line.split()) for word, line in text.items()} == {FMUL: "fmul s0, s0, s0", NOP: "nop"}


@needs_llvm
@pytest.mark.parametrize(("model", "latency"), [("cortex-a55", 4), ("cortex-a57", 5)])
def test_a_dependent_chain_costs_its_latency(model: str, latency: int) -> None:
    one, three, unknown = blocks.cycles_per_execution([code(FMUL), code(FMUL, FMUL, FMUL), code(UNKNOWN)], model)
    assert one == pytest.approx(latency, rel=0.02)
    assert three == pytest.approx(3 * latency, rel=0.02)
    assert unknown is None


@needs_llvm
def test_an_unknown_instruction_costs_the_mean_of_its_block() -> None:
    known, mixed = blocks.cycles_per_execution([code(FMUL, FMUL), code(FMUL, UNKNOWN)], "cortex-a55")
    assert known is not None
    assert mixed == pytest.approx(known, rel=0.02)


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SparrowError, match="instructions are still counted") as caught:
        blocks.cycles_per_execution([code(FMUL)], "cortex-a55")
    assert "llvm-19" in caught.value.next_step


@needs_llvm
def test_a_failure_of_the_tool_is_shown() -> None:
    with pytest.raises(SparrowError, match="llvm-mca"):
        blocks.cycles_per_execution([code(FMUL)], "no-such-core")

"""Records of counts: what they keep of a run is what prices it, and they come back as they were written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks.calibration.records import (
    NetworkRecord,
    RunRecord,
    load_record,
    load_records,
    record_run,
    save_record,
)
from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predict.work import program_work
from sparrow.benchmarks.runners.qemu import Cache, CacheMisses, ExecutedBlock, InstructionCounts, Section
from sparrow.kernels.errors import SparrowError

needs_llvm = pytest.mark.skipif(shutil.which(blocks.MCA) is None or shutil.which(blocks.DISASSEMBLER) is None,
                                reason=f"{blocks.MCA} predicts cycles: apt-get install llvm-19")  # fmt: skip

L1, L2, L3 = Cache(32768, 4, 64), Cache(524288, 16, 64), Cache(2097152, 16, 64)
FMUL = bytes.fromhex("0008201e")  # fmul s0, s0, s0


def counts(idle: int = 0) -> InstructionCounts:
    """A serial section, a parallel one of two threads and a serial one; a third thread sleeps throughout."""
    by_section = ((2_000_000, 0, idle), (2_000_000, 1_000_000, idle), (1_000_000, 0, idle))
    sections = tuple(
        Section(0, by_thread, caches=tuple(tuple(CacheMisses(number // 100, number // far) for number in by_thread)
                                           for far in (200, 500)))
        for by_thread in by_section
    )  # fmt: skip
    region = tuple(map(sum, zip(*by_section, strict=True)))
    return InstructionCounts(region, (region,), sections, (ExecutedBlock(FMUL, by_section),))


def record() -> RunRecord:
    return record_run(counts(), "cortex-a53", 2, ["cortex-a55", "cortex-a57"], [(L1, L2), (L1, L3)])


@needs_llvm
def test_a_record_prices_as_the_counts_do() -> None:
    run, recorded = counts(), record()
    work, whole = recorded.work("cortex-a55", (L1, L2), (L1, L3)), program_work(run, "cortex-a55", last_level=1)
    assert [len(section.threads) for section in work.sections] == [1, 2]
    assert work.sections[0].threads[0] == whole.sections[0].threads[0] + whole.sections[2].threads[0]
    assert work.sections[1].threads == whole.sections[1].threads[:2]
    assert work.total == whole.total
    # The other pipeline is another price of the same instructions, and without a third level the second is the last.
    other = recorded.work("cortex-a57", (L1, L2), (L1, L2))
    assert other.total.instructions == work.total.instructions
    assert other.total.pipeline_cycles != work.total.pipeline_cycles
    assert other.total.memory_lines == other.total.l2_misses == work.total.l2_misses


@needs_llvm
def test_a_record_knows_what_it_holds() -> None:
    recorded = record()
    assert recorded.has(["cortex-a57"], [(L1, L2), (L1, L3)])
    assert not recorded.has(["neoverse-n1"], [(L1, L2)])
    assert not recorded.has(["cortex-a57"], [(L1, Cache(1048576, 16, 64))])


@needs_llvm
def test_more_threads_than_were_asked_for_are_refused() -> None:
    with pytest.raises(SparrowError, match="3 threads had work"):
        record_run(counts(idle=5), "cortex-a53", 2, ["cortex-a55"], [(L1, L2)])


@needs_llvm
def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    whole = NetworkRecord("net", "1.0", "7.2", 19, (record(), replace(record(), threads=4)))
    save_record(whole, tmp_path)
    assert load_record(tmp_path / "net.json") == whole
    assert load_records(tmp_path) == {"net": whole}
    assert whole.run("cortex-a53", 4) == whole.runs[1] and whole.run("cortex-a53", 1) is None
    assert load_records(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": "sparrow-calibration-counts", "schema_version": 0}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(SparrowError, match="no counts of a network"):
        load_records(tmp_path)

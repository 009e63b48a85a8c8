"""Predictions from recorded runs: of numbers made up here, and of small programs under QEMU."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predict.calibration import Figures
from sparrow.benchmarks.predict.core import load_core
from sparrow.benchmarks.predict.predict import predict, price
from sparrow.benchmarks.predict.work import Work, program_work
from sparrow.benchmarks.runners import qemu
from sparrow.benchmarks.runners.qemu import Cache, CacheMisses, ExecutedBlock, InstructionCounts, Section
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError

needs_llvm = pytest.mark.skipif(shutil.which(blocks.MCA) is None or shutil.which(blocks.DISASSEMBLER) is None,
                                reason=f"{blocks.MCA} predicts cycles: apt-get install llvm-19")  # fmt: skip

FMUL = bytes.fromhex("0008201e")  # fmul s0, s0, s0, four cycles on the Cortex-A55
NOP = bytes.fromhex("1f2003d5")
UNKNOWN = b"\xff" * 4


def counts(
    *executed: tuple[bytes, tuple[tuple[int, ...], ...]],
    misses: tuple[int, int] = (0, 0),
    regions: int = 1,
    tasks: int = 0,
) -> InstructionCounts:
    """Counts of blocks that were executed so often [section][thread]; each thread missed as many lines."""
    shape = executed[0][1]
    totals = [
        [sum(len(code) // 4 * times[section][thread] for code, times in executed) for thread in range(len(shape[0]))]
        for section in range(len(shape))
    ]
    sections = tuple(
        Section(tasks, tuple(by_thread), caches=((CacheMisses(*misses),) * len(by_thread),)) for by_thread in totals
    )
    by_thread = tuple(map(sum, zip(*totals, strict=True)))
    return InstructionCounts(
        by_thread, (tuple(total // regions for total in by_thread),) * regions, sections,
        tuple(ExecutedBlock(code, times) for code, times in executed),
    )  # fmt: skip


def once(*executed: tuple[bytes, int], misses: tuple[int, int] = (0, 0), regions: int = 1) -> InstructionCounts:
    """The same of one section and one thread."""
    return counts(*((code, ((times,),)) for code, times in executed), misses=misses, regions=regions)


def test_a_price_is_of_the_pipeline_and_of_the_misses() -> None:
    figures = Figures(2.0, 13, 20, fork_join_microseconds=5, typical_ghz=1.5)
    work = Work(instructions=100, pipeline_cycles=400, l1_misses=7, l2_misses=3, memory_lines=1)
    assert price(work, figures, 2.0) == price(work, replace(figures, typical_ghz=2.0))
    cost = price(work, figures, 2.0)
    assert (cost.pipeline, cost.caches, cost.memory) == (800, 6 * 13, 1 * 20 * 2.0)
    assert price(work, figures).cycles == 800 + 6 * 13 + 30


@needs_llvm
def test_cycles_are_those_of_one_repetition() -> None:
    core = load_core("cortex-a53")
    core = replace(core, figures=Figures(2.0, 13, 20, fork_join_microseconds=5, typical_ghz=1.5))
    prediction = predict(once((2 * FMUL, 1000), misses=(70, 10), regions=10), core)
    assert prediction.instructions == 200
    assert prediction.pipeline_cycles == pytest.approx(2 * 100 * 2 * 4, rel=0.02)
    assert prediction.memory_cycles == pytest.approx(6 * 13 + 1 * 30)
    assert prediction.cycles == prediction.pipeline_cycles + prediction.memory_cycles
    assert prediction.coverage == 1


@needs_llvm
def test_work_is_told_apart_by_section_and_thread() -> None:
    recorded = counts((FMUL, ((100, 0), (200, 300))), (NOP, ((10, 0), (0, 1000))), regions=2, tasks=6, misses=(8, 4))
    work = program_work(recorded, "cortex-a55")
    (nop,) = blocks.cycles_per_execution([NOP], "cortex-a55")
    assert nop is not None
    assert [section.tasks for section in work.sections] == [3, 3]
    assert [[thread.instructions for thread in section.threads] for section in work.sections] == [[55, 0], [100, 650]]
    (main, idle), (_, worker) = (section.threads for section in work.sections)
    assert main.pipeline_cycles == pytest.approx(50 * 4 + 5 * nop, rel=0.02)
    assert idle.pipeline_cycles == 0
    assert worker.pipeline_cycles == pytest.approx(150 * 4 + 500 * nop, rel=0.02)
    assert (main.l1_misses, main.l2_misses, main.memory_lines) == (4, 2, 2)
    assert work.total.instructions == 805 and work.total.l1_misses == 16


@needs_llvm
def test_the_last_level_of_cache_stands_before_the_memory() -> None:
    recorded = once((FMUL, 100), misses=(8, 4))
    caches = ((CacheMisses(8, 4),), (CacheMisses(8, 1),))
    recorded = replace(recorded, sections=(replace(recorded.sections[0], caches=caches),))
    (section,) = program_work(recorded, "cortex-a55", hierarchy=0, last_level=1).sections
    assert (section.total.l1_misses, section.total.l2_misses, section.total.memory_lines) == (8, 4, 1)
    assert program_work(recorded, "cortex-a55", hierarchy=1).total.l2_misses == 1
    # A share of the last level may be smaller than the second level, which has what it has.
    assert program_work(recorded, "cortex-a55", hierarchy=1, last_level=0).total.memory_lines == 1


@needs_llvm
def test_rare_and_unknown_blocks_are_scaled_up() -> None:
    core = load_core("cortex-a53")
    exact = predict(once((FMUL, 1000)), core)
    rest = predict(once((FMUL, 1000), (NOP, 2), (UNKNOWN, 1)), core)
    assert rest.coverage == pytest.approx(1000 / 1003)
    assert rest.pipeline_cycles == pytest.approx(exact.pipeline_cycles * 1003 / 1000)
    unknown = predict(once((FMUL, 800), (UNKNOWN, 200)), core)
    assert unknown.coverage == pytest.approx(0.8)
    assert unknown.pipeline_cycles == pytest.approx(exact.pipeline_cycles)


@needs_llvm
@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (None, "no executed blocks"),
        (InstructionCounts((5,), ((5,),), ()), "no executed blocks"),
        (counts((FMUL, ((1, 1),))), "several threads"),
        (once((UNKNOWN, 1)), "knows none"),
    ],
)
def test_what_cannot_be_predicted_is_refused(recorded: InstructionCounts | None, message: str) -> None:
    with pytest.raises(SparrowError, match=message):
        predict(recorded, load_core("cortex-a53"))


# A chain of 8 dependent multiplications, 1000 times: Arm's guide says 4 cycles each on the Cortex-A55. The marks lie
# inside of translation blocks, and what is before and after them is not of the region.
CHAIN = r"""
int main(void) {
  for (int repetition = 0; repetition < 2; repetition++)
    __asm__ volatile(
        "nop\n hint #120\n mov x0, #1000\n"
        "1: .rept 8\n fmul s0, s0, s0\n .endr\n subs x0, x0, #1\n b.ne 1b\n"
        "hint #121\n nop" ::: "x0", "v0", "cc");
  return 0;
}
"""

# Walks over COUNT lines of 64 bytes, once before and twice within the region.
WALK = r"""
static char memory[COUNT * 64 + 64];
static void walk(void) {
  char *first = (char *)(((unsigned long)memory + 63) & ~63ul);
  __asm__ volatile("mov x0, %0\n mov x1, %1\n1: ldr w2, [x0], #64\n subs x1, x1, #1\n b.ne 1b"
                   :: "r"(first), "r"((long)COUNT) : "x0", "x1", "x2", "cc", "memory");
}
int main(void) {
  walk();
  __asm__ volatile("hint #120" ::: "memory");
  walk();
  walk();
  __asm__ volatile("hint #121" ::: "memory");
  return 0;
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A function that compiles C text to a static aarch64 program, where QEMU can record its blocks."""
    if not qemu.find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins, which record executed blocks")
    toolchain, folder = find_toolchain(), tmp_path_factory.mktemp("programs")

    def compile_program(name: str, text: str) -> Path:
        source = folder / f"{name}.c"
        source.write_text(text)
        toolchain.compile(source, source.with_suffix(".o"), flags=["-O2"])
        toolchain.link_executable([source.with_suffix(".o")], folder / name)
        return folder / name

    return compile_program


@pytest.mark.qemu
def test_a_program_costs_what_its_loop_costs_again_and_again(build: Callable[[str, str], Path]) -> None:
    program, core = build("chain", CHAIN), load_core("cortex-a53")
    runs = [qemu.run(program, cpu="cortex-a53", caches=[(core.l1, core.l2)]).counts for _ in range(2)]
    first, second = (predict(run, core) for run in runs)
    assert first == second
    assert runs[0] is not None and runs[0] == runs[1]
    assert runs[0].regions == ((1 + 1000 * 10,), (1 + 1000 * 10,))
    assert sum(len(block.code) // 4 * block.executions[0][0] for block in runs[0].blocks) == 2 * 10001
    assert first.instructions == 10001
    # The decrement and the branch may hide in the shadow of the chain.
    assert first.pipeline_cycles == pytest.approx(core.figures.pipeline_factor * 1000 * 8 * 4, rel=0.03)


@pytest.mark.qemu
def test_recording_does_not_change_the_counts(build: Callable[[str, str], Path]) -> None:
    program, core = build("chain_again", CHAIN), load_core("cortex-a76")
    plain = qemu.run(program, cpu="cortex-a76", count=True).counts
    recorded = qemu.run(program, cpu="cortex-a76", caches=[(core.l1, core.l2)]).counts
    assert plain is not None and recorded is not None
    assert (plain.program, plain.regions) == (recorded.program, recorded.regions)
    assert plain.blocks == () and plain.sections[0].caches == ()


# Levels of 64 lines in 4 ways and of 256 lines in 8. A walk that fits stays; one that is longer than its level, in
# order, finds each line just thrown out.
@pytest.mark.qemu
@pytest.mark.parametrize(("lines", "l1_misses", "l2_misses"), [(32, 0, 0), (128, 256, 0), (512, 1024, 1024)])
def test_misses_follow_from_the_size_of_the_data(
    build: Callable[[str, str], Path], lines: int, l1_misses: int, l2_misses: int
) -> None:
    program = build(f"walk_{lines}", WALK.replace("COUNT", str(lines)))
    recorded = qemu.run(program, cpu="cortex-a53", caches=[(Cache(4096, 4, 64), Cache(16384, 8, 64))]).counts
    assert recorded is not None
    (section,) = recorded.sections
    ((misses,),), (memory,) = section.caches, section.memory
    assert (memory.loads, memory.bytes_loaded, memory.stores) == (2 * lines, 4 * 2 * lines, 0)
    assert (misses.l1, misses.l2) == (l1_misses, l2_misses)


@pytest.mark.qemu
def test_threads_are_recorded_apart(build: Callable[[str, str], Path]) -> None:
    program = build("threads", r"""
#include <pthread.h>
static void *work(void *unused) {
  __asm__ volatile("mov x0, #5000\n1: subs x0, x0, #1\n b.ne 1b" ::: "x0", "cc");
  return unused;
}
int main(void) {
  pthread_t thread;
  __asm__ volatile("hint #120" ::: "memory");
  pthread_create(&thread, 0, work, 0);
  pthread_join(thread, 0);
  __asm__ volatile("hint #121" ::: "memory");
  return 0;
}
""")  # fmt: skip
    core = load_core("cortex-a53")
    recorded = qemu.run(program, cpu="cortex-a53", caches=[(core.l1, core.l2)]).counts
    assert recorded is not None and len(recorded.sections[0].caches[0]) == 2
    by_thread = [sum(len(block.code) // 4 * block.executions[0][at] for block in recorded.blocks) for at in range(2)]
    assert tuple(by_thread) == recorded.regions[0]
    assert by_thread[1] > 10_000
    with pytest.raises(SparrowError, match="several threads"):
        predict(recorded, core)


@pytest.mark.parametrize("size", [(0, 4, 64), (1000, 4, 64), (4096, 0, 64), (4096, 4, -64)])
def test_impossible_caches_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(SparrowError, match="ways"):
        Cache(*size)


def test_blocks_need_plugins(monkeypatch: pytest.MonkeyPatch, build: Callable[[str, str], Path]) -> None:
    found, core = qemu.find_qemu(), load_core("cortex-a53")
    monkeypatch.setattr(qemu, "find_qemu", lambda: replace(found, plugins=False))
    with pytest.raises(SparrowError, match="without plugins"):
        qemu.run(build("no_plugins", CHAIN), cpu="cortex-a53", caches=[(core.l1, core.l2)])

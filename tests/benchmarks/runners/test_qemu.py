"""The QEMU runner and its instruction counter, with small C programs."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks.runners import qemu
from sparrow.benchmarks.runners.qemu import Cache, MemoryCounts
from sparrow.deploy.target import TARGETS
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A function that compiles C text to a static aarch64 program."""
    toolchain, folder = find_toolchain(), tmp_path_factory.mktemp("programs")

    def compile_program(name: str, text: str) -> Path:
        source = folder / f"{name}.c"
        source.write_text(text)
        toolchain.compile(source, source.with_suffix(".o"), flags=["-D_GNU_SOURCE", "-Wno-infinite-recursion"])
        toolchain.link_executable([source.with_suffix(".o")], folder / name)
        return folder / name

    return compile_program


# The loop is a move and 2 * COUNT instructions; the hints lie in the middle of translation blocks.
LOOP = r"""
#include <stdio.h>
#define LOOP(COUNT) "mov x0, #" #COUNT "\n1: subs x0, x0, #1\n b.ne 1b\n"
int main(void) {
  puts("started");
  __asm__ volatile("nop\n hint #120\n" LOOP(1000) "hint #121\n nop" ::: "x0", "cc");
  __asm__ volatile("nop\n hint #120\n nop\n nop\n hint #121\n hint #120\n hint #121" ::: "cc");
  __asm__ volatile(LOOP(5000) ::: "x0", "cc");
  return 7;
}
"""


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_regions_are_exact_to_the_instruction_and_repeat(build: Build) -> None:
    program = build("loop", LOOP)
    first, second = (qemu.run(program, cpu="cortex-a53", count=True) for _ in range(2))
    assert (first.exit_code, first.stdout) == (7, "started\n")
    assert first.counts is not None
    assert first.counts.regions == ((2001,), (2,), (0,))
    assert first.counts.program[0] > 2001 + 10001
    assert first.counts == second.counts


# The worker's share of a region is one loop that it starts in the region and ends before the region does.
THREADS = r"""
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
static atomic_int go, done;
static void *work(void *unused) {
  while (!atomic_load(&go)) sched_yield();
  __asm__ volatile("mov x0, #60000\n1: subs x0, x0, #1\n b.ne 1b" ::: "x0", "cc");
  atomic_store(&done, 1);
  return unused;
}
int main(void) {
  pthread_t thread;
  pthread_create(&thread, 0, work, 0);
  __asm__ volatile("hint #120" ::: "memory");
  atomic_store(&go, 1);
  while (!atomic_load(&done)) sched_yield();
  __asm__ volatile("hint #121" ::: "memory");
  pthread_join(thread, 0);
  __asm__ volatile("hint #120\nnop\nhint #121" ::: "memory");
  return 0;
}
"""


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_region_of_one_thread_counts_the_work_of_all(build: Build) -> None:
    counts = qemu.run(build("threads", THREADS), cpu="cortex-a76", count=True).counts
    assert counts is not None
    assert len(counts.program) == 2
    (_, worker), (main_after, worker_after) = counts.regions
    assert worker > 120_001
    assert counts.program[1] >= worker
    assert (main_after, worker_after) == (1, 0)


# Two regions of the same work: 3 instructions before the first section mark, then a loop of 21 with two tasks, then 4.
# The hints lie inside of translation blocks; each hint #122 is the last instruction of the section that it ends.
SECTIONS = r"""
int main(void) {
  __asm__ volatile("hint #122\n hint #123" ::: "memory");
  for (int region = 0; region < 2; region++)
    __asm__ volatile("nop\n hint #120\n nop\n nop\n hint #122\n" LOOP(9)
                     "hint #123\n hint #123\n hint #122\n nop\n nop\n nop\n nop\n hint #121\n nop" ::: "x0", "cc");
  __asm__ volatile("hint #122\n hint #123" ::: "memory");
  return 0;
}
""".replace("int main", LOOP.split("\n")[2] + "\nint main")


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_sections_are_exact_and_sum_up_the_regions(build: Build) -> None:
    counts = qemu.run(build("sections", SECTIONS), cpu="cortex-a53", count=True).counts
    assert counts is not None
    assert counts.regions == ((3 + 22 + 4,),) * 2
    assert [section.instructions for section in counts.sections] == [(6,), (44,), (8,)]
    assert [section.tasks for section in counts.sections] == [0, 4, 0]
    assert [(section.memory, section.caches) for section in counts.sections] == [((), ())] * 3


# A worker takes two tasks of a section while the main thread waits, and then the main thread takes the third. The
# worker's own section mark means nothing.
TASKS = r"""
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
static atomic_int section;
static void *work(void *unused) {
  while (atomic_load(&section) != 1) sched_yield();
  __asm__ volatile("hint #122\n hint #123\n hint #123\n mov x0, #30000\n1: subs x0, x0, #1\n b.ne 1b" ::: "x0", "cc");
  atomic_store(&section, 2);
  while (atomic_load(&section) != 3) sched_yield();
  return unused;
}
int main(void) {
  pthread_t thread;
  pthread_create(&thread, 0, work, 0);
  __asm__ volatile("hint #120\n hint #122" ::: "memory");
  atomic_store(&section, 1);
  while (atomic_load(&section) != 2) sched_yield();
  __asm__ volatile("hint #123\n hint #122\n nop\n hint #121" ::: "memory");
  atomic_store(&section, 3);
  pthread_join(thread, 0);
  return 0;
}
"""


# A list of two tasks, and one of a single task; the second region's are not told again.
LISTS = r"""
int main(void) {
  __asm__ volatile("hint #124\n hint #123" ::: "memory");
  for (int region = 0; region < 2; region++)
    __asm__ volatile("hint #120\n hint #122\n hint #124\n hint #123\n" LOOP(1000) "hint #123\n" LOOP(3000)
                     "hint #124\n hint #123\n" LOOP(2000) "hint #122\n nop\n hint #121" ::: "x0", "cc");
  return 0;
}
""".replace("int main", LOOP.split("\n")[2] + "\nint main")


@pytest.mark.qemu
def test_lists_of_tasks_say_what_each_task_took(build: Build) -> None:
    if not qemu.find_qemu().plugins:
        pytest.skip("needs a QEMU with plugins")
    counts = qemu.run(build("lists", LISTS), cpu="cortex-a53", count=True).counts
    assert counts is not None
    assert [section.tasks for section in counts.sections] == [0, 6, 0]
    before, (both, single), after = (section.lists for section in counts.sections)
    assert (before, after) == ((), ())
    assert (both, single) == (pytest.approx((2001, 6001), abs=10), pytest.approx((4001,), abs=10))


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_work_of_a_thread_belongs_to_the_section_of_the_main_thread(build: Build) -> None:
    counts = qemu.run(build("tasks", TASKS), cpu="cortex-a76", count=True).counts
    assert counts is not None
    assert [section.tasks for section in counts.sections] == [0, 3, 0]
    before, parallel, after = (section.instructions for section in counts.sections)
    assert (before[0], after[0]) == (1, 1)
    assert parallel[1] >= 60_001 > 30_000 > before[1] + after[1]
    (region,) = counts.regions
    assert region == tuple(map(sum, zip(before, parallel, after, strict=True)))


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_unmatched_marks_are_an_error(build: Build) -> None:
    program = build("unmatched", '\nint main(void) { __asm__ volatile("hint #120"); return 0; }\n')
    with pytest.raises(SparrowError, match="1 region marks"):
        qemu.run(program, cpu="cortex-a53", count=True)


@pytest.fixture
def plugins() -> None:
    if not qemu.find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")


# Three sections: 10 loads of 4 bytes, 6 stores of 8 bytes, and 5 loads of 16 bytes, which QEMU splits.
ACCESSES = r"""
static char memory[4096] __attribute__((aligned(4096)));
int main(void) {
  __asm__ volatile("hint #120\n .rept 10\n ldr w0, [%0]\n .endr\n hint #122\n"
                   ".rept 6\n str x0, [%0]\n .endr\n hint #122\n"
                   ".rept 5\n ldr q0, [%0]\n .endr\n hint #121" :: "r"(memory) : "x0", "v0", "memory");
  return 0;
}
"""


@pytest.mark.qemu
@pytest.mark.usefixtures("plugins")
def test_loads_and_stores_are_counted_by_section(build: Build) -> None:
    program = build("accesses", ACCESSES)
    counts = qemu.run(program, cpu="cortex-a53", memory=True).counts
    assert counts is not None
    assert [section.memory for section in counts.sections] == [
        (MemoryCounts(10, 0, 40, 0),), (MemoryCounts(0, 6, 0, 48),), (MemoryCounts(10, 0, 80, 0),)
    ]  # fmt: skip
    assert counts.blocks == () and [section.caches for section in counts.sections] == [()] * 3


# Each section walks over as many lines of 64 bytes as its caches hold or do not hold.
LINES = r"""
static char memory[65536] __attribute__((aligned(4096)));
#define WALK(COUNT) "mov x0, %0\n mov x1, #" #COUNT "\n1: ldr w2, [x0], #64\n subs x1, x1, #1\n b.ne 1b\n"
int main(void) {
  __asm__ volatile("hint #120\n" WALK(64) "hint #122\n" WALK(64) WALK(64) "hint #122\n" WALK(256) WALK(256) "hint #121"
                   :: "r"(memory) : "x0", "x1", "x2", "cc", "memory");
  return 0;
}
"""


@pytest.mark.qemu
@pytest.mark.usefixtures("plugins")
def test_hierarchies_of_caches_are_simulated_side_by_side(build: Build) -> None:
    small, large, odd = Cache(4096, 4, 64), Cache(16384, 8, 64), Cache(3 * 4096, 4, 64)
    pairs = [(small, large), (small, Cache(65536, 4, 64)), (odd, large), (Cache(4096, 64, 64), Cache(8192, 4, 128))]
    program = build("lines", LINES)
    together = qemu.run(program, cpu="cortex-a53", caches=pairs).counts
    assert together is not None
    misses = [[(one.l1, one.l2) for (one,) in section.caches] for section in together.sections]
    assert misses == [
        [(64, 64), (64, 64), (64, 64), (64, 32)],
        [(0, 0), (0, 0), (0, 0), (0, 0)],
        # The first walk finds the lines of the section before, as far as nothing threw them out; 192 lines are new.
        [(512 - 64, 192), (512 - 64, 192), (512 - 64, 192), (512 - 64, 256 - 32)],
    ]
    for index, pair in enumerate(pairs):
        alone = qemu.run(program, cpu="cortex-a53", caches=[pair]).counts
        assert alone is not None and alone.blocks == together.blocks
        assert [section.caches for section in alone.sections] == [(each.caches[index],) for each in together.sections]


@pytest.mark.qemu
@pytest.mark.usefixtures("plugins")
def test_executed_blocks_add_up_to_the_sections(build: Build) -> None:
    program, pair = build("sections", SECTIONS), (Cache(4096, 4, 64), Cache(16384, 8, 64))
    counts, again = (qemu.run(program, cpu="cortex-a53", caches=[pair]).counts for _ in range(2))
    assert counts is not None and counts == again
    for index, section in enumerate(counts.sections):
        executed = sum(block.instructions * block.executions[index][0] for block in counts.blocks)
        assert (executed,) == section.instructions
    assert counts.regions == ((29,), (29,))


# Touches 1000 pages, gives 900 of them back, touches 100 of those again, and 500 others that move and become 900.
PAGES = r"""
#include <string.h>
#include <sys/mman.h>
static char *map(long pages) {
  return mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static void touch(char *memory, int pages) {
  for (int page = 0; page < pages; page++) ((volatile char *)memory)[page * 4096] = 1;
}
int main(int count, char **arguments) {
  if (count == 1) return !arguments;
  char *memory = map(1000000);
  touch(memory, 1000);
  munmap(memory + 400 * 4096, 600 * 4096);
  madvise(memory, 300 * 4096, MADV_DONTNEED);
  touch(memory, 100);
  char *moved = map(500);
  touch(moved, 500);
  moved = mremap(moved, 500 * 4096, 2000000L * 4096, MREMAP_MAYMOVE);
  touch(moved, 900);
  return 0;
}
"""


@pytest.mark.qemu
@pytest.mark.usefixtures("plugins")
def test_peak_memory_is_what_was_resident_at_once(build: Build) -> None:
    program = build("pages", PAGES)
    runs = [qemu.run(program, arguments, cpu="cortex-a53", memory=True) for arguments in ([], ["x"], ["x"])]
    base, first, second = (run.peak_memory_bytes for run in runs)
    assert base is not None and first is not None and first == second
    # 1000 pages at first, 100 + 100 + 900 in the end; a few of the program's own code.
    assert 1100 <= (first - base) // 4096 <= 1103 and base < 200 * 4096
    assert qemu.run(program, cpu="cortex-a53", count=True).peak_memory_bytes is None


@pytest.mark.qemu
def test_sysroot_and_environment_reach_the_program(build: Build, tmp_path: Path) -> None:
    text = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  char line[99] = "";
  FILE *file = fopen("/etc/of-the-sysroot", "r");
  fgets(line, 99, file);
  printf("%s %s %s %s", line, getenv("PLAIN"), getenv("LD_LIBRARY_PATH"), getenv("HOME") ? "home" : "no home");
  return 0;
}
"""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "of-the-sysroot").write_text("found")
    environment = {"PLAIN": "a,b c", "LD_LIBRARY_PATH": "/nowhere"}
    result = qemu.run(build("sysroot", text), cpu="cortex-a53", sysroot=tmp_path, environment=environment)
    assert result.stdout == "found a,b c /nowhere no home"


@pytest.mark.qemu
@pytest.mark.usefixtures("plugins")
def test_counts_that_were_cut_short_are_an_error(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(text: str) -> object:
        raise ValueError(text[:1])

    monkeypatch.setattr(qemu.json, "loads", cut)
    with pytest.raises(SparrowError, match="wrote no instruction counts"):
        qemu.run(build("loop", LOOP), cpu="cortex-a53", count=True)


@pytest.mark.qemu
def test_arguments_output_and_environment(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEMU_CPU", "no-such-model")
    text = "#include <stdio.h>\nint main(int n, char **a) { fputs(a[n - 1], stderr); return n; }\n"
    result = qemu.run(build("arguments", text), ["--x", "a, b"], cpu="armv8-a")
    assert (result.exit_code, result.stdout, result.stderr, result.counts) == (3, "", "a, b", None)


@pytest.mark.qemu
def test_rubbish_that_a_program_prints_is_handed_on(build: Build) -> None:
    text = '#include <unistd.h>\nint main(void) { return write(1, "\\xff\\0x", 3) != 3; }\n'
    result = qemu.run(build("rubbish", text), cpu="cortex-a53")
    assert (result.exit_code, result.stdout) == (0, "\ufffd\0x")


# A parent and a child that both sleep: the child must not survive either.
HANG = "#include <unistd.h>\nint main(void) { fork(); for (;;) sleep(100); }\n"


@pytest.mark.qemu
def test_hang_is_stopped_with_its_children(build: Build, assert_gone: Callable[[Path], None]) -> None:
    program = build("hanging_on_timeout", HANG)
    with pytest.raises(SparrowError, match=r"more than 0\.5 s"):
        qemu.run(program, cpu="cortex-a53", timeout=0.5)
    assert_gone(program)


@pytest.mark.qemu
def test_interrupt_leaves_no_process(
    build: Build, monkeypatch: pytest.MonkeyPatch, assert_gone: Callable[[Path], None]
) -> None:
    program = build("hanging_on_interrupt", HANG)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qemu.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        qemu.run(program, cpu="cortex-a53")
    monkeypatch.undo()
    assert_gone(program)


@pytest.mark.qemu
def test_crash_names_the_signal(build: Build) -> None:
    program = build("crash", "\nint main(void) { *(volatile int *)8 = 1; return 0; }\n")
    with pytest.raises(SparrowError, match="SIGSEGV"):
        qemu.run(program, cpu="cortex-a53")


@pytest.mark.qemu
def test_instruction_that_the_cpu_lacks(build: Build) -> None:
    # sdot v0.4s, v1.16b, v2.16b, as a word so that it assembles for every architecture level
    program = build("sdot", '\nint main(void) { __asm__ volatile(".inst 0x4e829420" ::: "v0"); return 0; }\n')
    with pytest.raises(SparrowError, match="SIGILL") as caught:
        qemu.run(program, cpu="cortex-a53")
    assert "cortex-a53 lacks" in caught.value.next_step
    for cpu in ("cortex-a55", "cortex-a76", "cortex-a510", "armv8.2-a+dotprod", "armv8.6-a+i8mm"):
        assert qemu.run(program, cpu=cpu).exit_code == 0


def test_wrong_files_are_refused_before_qemu_runs(tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match="cannot read"):
        qemu.run(tmp_path / "none", cpu="cortex-a53")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0 # padding\n")
    with pytest.raises(SparrowError, match="no ELF"):
        qemu.run(script, cpu="cortex-a53")
    for machine, bits in ((62, 2), (40, 1), (183, 1)):  # x86-64, 32-bit ARM, 32-bit programs for aarch64
        other = tmp_path / "other"
        other.write_bytes(b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + b"\x02\x00" + bytes([machine, 0]) + bytes(40))
        with pytest.raises(SparrowError, match=rf"another architecture .*{machine}"):
            qemu.run(other, cpu="cortex-a53")
    arm = tmp_path / "arm"
    arm.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(40))
    with pytest.raises(SparrowError, match="not executable") as caught:
        qemu.run(arm, cpu="cortex-a53")
    assert "chmod +x" in caught.value.next_step


def test_unknown_cpu_names_near_ones() -> None:
    with pytest.raises(SparrowError) as caught:
        qemu.cpu_model("cortex-a75")
    assert "cortex-a76" in caught.value.expected


def test_every_target_has_a_cpu_model() -> None:
    assert set(TARGETS) <= set(qemu.CPU_MODELS)


def test_missing_qemu_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparrowError, match="not installed") as caught:
        qemu.find_qemu()
    assert "apt-get install qemu-user" in caught.value.next_step


@pytest.mark.parametrize(("version", "api"), [("7.2.22", 1), ("8.2.2", 1), ("9.0.4", 2), ("9.1.0", 3), ("10.0.3", 3)])
def test_plugin_interface_follows_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, api: int
) -> None:
    program = tmp_path / "qemu-aarch64"
    program.write_text(f"#!/bin/sh\necho 'qemu-aarch64 version {version} (Debian)'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = qemu.find_qemu()
    assert (found.version, found.plugin_api, found.plugins) == (version, api, False)


def test_plugin_is_built_once_for_each_interface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    old, new = (qemu.build_plugin(qemu.Qemu("qemu-aarch64", version, True)) for version in ("7.2.22", "10.0.3"))
    assert old != new
    written = old.stat().st_mtime_ns
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler any more: only the cache can answer
    assert qemu.build_plugin(qemu.Qemu("qemu-aarch64", "7.2.22", True)) == old
    assert old.stat().st_mtime_ns == written
    assert sorted(path.suffix for path in old.parent.iterdir()) == [".so", ".so"]


@pytest.mark.qemu
def test_execution_log_that_is_not_understood_is_explained(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    found = qemu.find_qemu()
    monkeypatch.setattr(qemu, "find_qemu", lambda: replace(found, plugins=False))
    monkeypatch.setattr(qemu, "LOG_ITEMS", "exec,nochain")  # entries of blocks that were never described
    with pytest.raises(SparrowError, match="is not understood"):
        qemu.run(build("loop", LOOP), cpu="cortex-a53", count=True, timeout=20)


@pytest.mark.qemu
def test_execution_log_counts_what_the_plugin_counts(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    program, found = build("loop", LOOP), qemu.find_qemu()
    if not found.plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")
    reference = qemu.run(program, cpu="cortex-a76", count=True).counts
    monkeypatch.setattr(qemu, "find_qemu", lambda: replace(found, plugins=False))
    assert qemu.run(program, cpu="cortex-a76", count=True).counts == reference


@pytest.mark.qemu
def test_plugin_of_the_fallback_compiler_counts_alike(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, found = build("loop", LOOP), qemu.find_qemu()
    if not found.plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")
    reference = qemu.run(program, cpu="cortex-a53", count=True).counts
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(qemu, "find_qemu", lambda: found)
    assert qemu.run(program, cpu="cortex-a53", count=True).counts == reference


def test_failing_compiler_is_explained_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(SparrowError, match="instructions cannot be counted") as caught:
        qemu.build_plugin(qemu.Qemu("qemu-aarch64", "7.2.22", True))
    assert "no such header" in caught.value.got and "gcc" in caught.value.next_step
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))

"""The QEMU runner and its instruction counter, with small C programs."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks.runners import qemu
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


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_unmatched_marks_are_an_error(build: Build) -> None:
    program = build("unmatched", '\nint main(void) { __asm__ volatile("hint #120"); return 0; }\n')
    with pytest.raises(SparrowError, match="1 region marks"):
        qemu.run(program, cpu="cortex-a53", count=True)


@pytest.mark.qemu
def test_arguments_output_and_environment(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEMU_CPU", "no-such-model")
    text = "#include <stdio.h>\nint main(int n, char **a) { fputs(a[n - 1], stderr); return n; }\n"
    result = qemu.run(build("arguments", text), ["--x", "a, b"], cpu="armv8-a")
    assert (result.exit_code, result.stdout, result.stderr, result.counts) == (3, "", "a, b", None)


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
    x86 = tmp_path / "x86"
    x86.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(40))
    with pytest.raises(SparrowError, match=r"another architecture .*62"):
        qemu.run(x86, cpu="cortex-a53")
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

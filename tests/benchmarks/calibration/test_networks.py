"""ncnn's networks: what is read of a folder, how an inference is marked, and ncnn itself under QEMU."""

from pathlib import Path

import pytest

from sparrow.benchmarks.calibration.networks import GUEST, NcnnRunner, Network, read_networks
from sparrow.benchmarks.runners import qemu
from sparrow.benchmarks.runners.qemu import Cache
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import cache_dir

# One convolution of 8 filters of 3x3 and its ReLU, in ncnn's text format.
PARAM = """7767517
3 3
Input            data   0 1 data 0=16 1=16 2=3
Convolution      conv   1 1 data conv 0=8 1=3 4=1 5=1 6=216
ReLU             relu   1 1 conv relu
"""

# Runs two bodies of two threads each and one of one thread, on a runtime that calls them one after another.
PROGRAM = r"""
typedef void parallel_function(void (*body)(void *), void *data, unsigned threads, unsigned flags);
extern parallel_function *gomp_parallel, GOMP_parallel;
extern void begin_region(void), end_region(void);
static void runtime(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
  (void)flags;
  for (unsigned thread = 0; thread < threads; thread++) body(data);
}
static void body(void *data) {
  for (long count = *(long *)data; count; count--) __asm__ volatile("nop");
}
int main(void) {
  long few = 1000, many = 5000;
  gomp_parallel = runtime;
  begin_region();
  GOMP_parallel(body, &few, 2, 0);
  GOMP_parallel(body, &few, 1, 0);
  GOMP_parallel(body, &many, 2, 0);
  end_region();
  return 0;
}
"""


def test_networks_are_those_that_are_listed_and_there(tmp_path: Path) -> None:
    (tmp_path / "inputs.txt").write_text("one 32 16 3\ntwo 8 8 1\n")
    (tmp_path / "one.param").write_text(PARAM)
    (tmp_path / "other.param").write_text(PARAM)
    assert read_networks(tmp_path) == {"one": Network("one", tmp_path / "one.param", 32, 16, 3)}


@pytest.mark.parametrize(
    ("listing", "message"),
    [(None, "cannot read .*inputs.txt"), ("one 32\n", "'one 32'"), ("one 3 x 3\n", "'one 3 x 3'"), ("", "no .param"),
     ("\xff", "has the line")],
)  # fmt: skip
def test_other_folders_are_refused(tmp_path: Path, listing: str | None, message: str) -> None:
    if listing is not None:
        (tmp_path / "inputs.txt").write_text(listing, encoding="latin-1")
    with pytest.raises(SparrowError, match=message):
        read_networks(tmp_path)


@pytest.mark.qemu
def test_each_parallel_region_is_a_section(tmp_path: Path) -> None:
    if not qemu.find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")
    toolchain, main, objects = find_toolchain(), tmp_path / "main.c", [tmp_path / "main.o", tmp_path / "marks.o"]
    main.write_text(PROGRAM)
    for source, target in zip((main, GUEST / "parallel_marks.c"), objects, strict=True):
        toolchain.compile(source, target)
    toolchain.link_executable(objects, tmp_path / "program")
    counts = qemu.run(tmp_path / "program", cpu="cortex-a53", count=True).counts
    assert counts is not None and len(counts.regions) == 1
    serial, first, between, second, _ = (section.instructions[0] for section in counts.sections)
    assert serial < 100
    assert 2 * 1000 < first < 2 * 5000 < second
    # The one on a single thread is a part of what the main thread does between the others.
    assert 1000 < between < first


@pytest.mark.qemu
@pytest.mark.slow
def test_ncnn_runs_and_is_counted(tmp_path: Path) -> None:
    if not list((cache_dir() / "wheels" / "aarch64").glob("ncnn-*")) or not qemu.find_qemu().plugins:
        pytest.skip("ncnn for aarch64 is not in the cache: sparrow calibrate fetches it")
    param = tmp_path / "tiny.param"
    param.write_text(PARAM)
    runner, caches = NcnnRunner(lambda step: None), [(Cache(32768, 4, 64), Cache(524288, 16, 64))]
    network = Network("tiny", param, 16, 16, 3)
    several = runner.count(network, cpu="cortex-a53", threads=4, caches=caches, timeout=300)
    assert len(several.regions) == 1 and len(several.sections) >= 3
    assert sum(1 for thread in several.regions[0] if thread) == 4
    assert sum(several.regions[0]) > 8 * 16 * 16 * 27 / 8

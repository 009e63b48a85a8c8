"""Two processes at the same place, caches of another version, folders that cannot be written, and full disks."""

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparrow.deploy import compiler
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file, atomic_folder

WRITERS = 6
# Writes a folder of two files that belong together again and again, each time with another content.
WRITER = """
import sys
from pathlib import Path
from sparrow.kernels.files import atomic_file, atomic_folder
folder, mark = Path(sys.argv[1]), sys.argv[2]
for turn in range(20):
    with atomic_folder(folder / "result", may_replace=lambda path: True) as fresh:
        for name in ("one", "two"):
            (fresh / name).write_text(f"{mark} {turn}" * 1000)
    with atomic_file(folder / "file") as fresh:
        fresh.write_text(mark * 100000)
"""


def test_processes_that_write_the_same_do_not_mix(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True)
               for number in range(WRITERS)]  # fmt: skip
    file, mixed = tmp_path / "file", 0
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            text = file.read_text()
            mixed += len(set(text)) != 1 or len(text) != 100000
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, errors
    assert mixed == 0
    one, two = ((tmp_path / "result" / name).read_text() for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "result"]


# Builds objects of the runtime in one cache with others that do the same, and uses what it gets at once.
BUILDER = """
import sys
from sparrow.deploy.compiler import runtime_objects
class Compiler:
    def __init__(self, version):
        self.identity = version
    def compile(self, source, output, **options):
        output.write_text(source.name)
for turn in range(8):
    for path in runtime_objects(Compiler(str(turn))):
        assert path.read_text().rpartition(".")[0] == path.stem
"""


def test_processes_that_build_into_one_cache_do_not_take_files_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path))
    builders = [subprocess.Popen([sys.executable, "-c", BUILDER], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [builder.communicate()[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0] * 4, errors
    assert len(list((tmp_path / "objects").iterdir())) == 8  # one for each version, and nothing half done


class CountingCompiler:
    """A toolchain whose object files are the hash of their source, and that counts how often it is asked."""

    def __init__(self, version: str) -> None:
        self.identity, self.count = version, 0

    def compile(self, source: Path, output: Path, *, isa: str = "neon", flags: tuple[str, ...] = ()) -> None:
        self.count += 1
        output.write_text(hashlib.sha256(source.read_bytes()).hexdigest())


def test_a_cache_of_another_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path))
    first, same, other = CountingCompiler("1"), CountingCompiler("1"), CountingCompiler("2")
    objects = [compiler.runtime_objects(toolchain) for toolchain in (first, same, other)]
    assert first.count == other.count == len(objects[0]) and same.count == 0
    assert objects[0] == objects[1] and not set(objects[0]) & set(objects[2])


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SparrowError, match=r"cannot write .*cache.*: a part of the path is no folder") as caught:
        compiler.runtime_objects(CountingCompiler("1"))
    assert "SPARROW_CACHE" in caught.value.next_step


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_without_write_access_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SparrowError, match=r"cannot write .*cache.*: permission denied"):
        compiler.runtime_objects(CountingCompiler("1"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KB, in a mount of this process's own where it may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_leaves_the_old_result(small_disk: Path) -> None:
    with atomic_file(small_disk / "file") as fresh:
        fresh.write_text("old")
    with pytest.raises(SparrowError, match="the disk is full"), atomic_file(small_disk / "file") as fresh:
        fresh.write_bytes(bytes(1 << 20))
    with atomic_folder(small_disk / "folder", may_replace=lambda path: True) as fresh:
        (fresh / "file").write_text("old")
    with (
        pytest.raises(SparrowError, match="the disk is full"),
        atomic_folder(small_disk / "folder", may_replace=lambda path: True) as fresh,
    ):
        (fresh / "file").write_bytes(bytes(1 << 20))
    assert sorted(path.name for path in small_disk.iterdir()) == ["file", "folder"]
    assert (small_disk / "file").read_text() == (small_disk / "folder" / "file").read_text() == "old"


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from sparrow.kernels.errors import SparrowError\nfrom sparrow.kernels.files import atomic_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    with atomic_file(Path(sys.argv[1])) as file:\n        file.write_bytes(bytes(10000))\n"
        "except SparrowError as error:\n    print(error.got)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a file would be larger than is allowed" in result.stdout
    assert list(tmp_path.iterdir()) == []

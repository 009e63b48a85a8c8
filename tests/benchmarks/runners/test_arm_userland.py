"""The userland for arm64: what is fetched, what a failure leaves, and what a script in it sees."""

import json
import os
from pathlib import Path

import pytest

from sparrow.benchmarks.runners import arm_userland as module
from sparrow.benchmarks.runners.arm_userland import Userland, arm_userland, cpu_features, described_root, wheel_folder
from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.kernels.errors import SparrowError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for apt and dpkg, which log their calls; ``fail`` names one that fails."""
    folder = tmp_path / "tools"
    folder.mkdir()
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> {folder}/calls
if [ "$(cat {folder}/fail 2>/dev/null)" = "$(basename "$0")" ]; then echo "no route to host" >&2; exit 100; fi
case "$(basename "$0") $*" in
  *indextargets*) printf 'Packages\\tfile:///mirror\\tbookworm\\tmain\\nPackages\\tfile:///mirror\\tnodistro\\tmain\\n';;
  *download-only*) for option in "$@"; do case "$option" in Dir::Cache=*) cache="${{option#*=}}";; esac; done
                   touch "$cache/archives/python.deb";;
  "dpkg "*) mkdir -p "$3/usr/bin" "$3/proc"; echo python > "$3/usr/bin/python3.11";;
esac
"""
    for name in ("apt-get", "dpkg"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_debian_is_fetched_once(cache: Path, tools: Path) -> None:
    steps: list[str] = []
    userland = arm_userland([], on_progress=steps.append)
    assert userland.python.read_text() == "python\n"
    assert not (userland.root / "proc").exists()
    assert len(steps) == 3
    calls = (tools / "calls").read_text()
    assert "APT::Architecture=arm64" in calls
    assert arm_userland([], on_progress=steps.append) == userland
    assert (tools / "calls").read_text() == calls
    assert [path.name for path in (cache / "arm-userland").iterdir()] == [userland.root.name]


@pytest.mark.parametrize("tool", ["apt-get", "dpkg"])
def test_a_failed_download_says_so_leaves_no_userland_and_goes_on_later(cache: Path, tools: Path, tool: str) -> None:
    (tools / "fail").write_text(tool)
    with pytest.raises(SparrowError, match=f"{tool}.*\n?.*no route to host") as caught:
        arm_userland([])
    assert caught.value.exit_code == 1
    assert caught.value.next_step
    assert not list(cache.glob("arm-userland/*/usr"))
    (tools / "fail").unlink()
    assert arm_userland([]).python.exists()


def test_a_machine_without_apt_is_told_what_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda tool: None)
    with pytest.raises(SparrowError, match="apt-get and dpkg not found"):
        arm_userland([])


def test_sources_of_another_release_do_not_do(
    cache: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "DEBIAN_RELEASE", "sid")
    with pytest.raises(SparrowError, match="no source of packages of Debian sid"):
        arm_userland([])


def test_an_unknown_package_lists_near_names(cache: Path) -> None:
    with pytest.raises(SparrowError, match="'onxruntime'") as caught:
        arm_userland(["onxruntime"])
    assert "did you mean 'onnxruntime'?" in caught.value.expected


def test_a_wheel_that_cannot_be_had_leaves_nothing(cache: Path) -> None:
    options = ["--no-index", "--platform=manylinux2014_aarch64", "--python-version=3.11"]
    with pytest.raises(SparrowError, match=r"pip cannot get the aarch64 wheel of ncnn 0\.1"):
        wheel_folder("ncnn", "0.1", "aarch64", options, lambda step: None)
    assert list((cache / "wheels" / "aarch64").iterdir()) == []


@pytest.mark.parametrize(("cpu", "part", "has", "lacks"), [
    ("cortex-a53", "0xd03", "asimd", "asimddp"),
    ("cortex-a76", "0xd0b", "asimddp", "i8mm"),
    ("armv8.6-a+i8mm", "0xd47", "i8mm", "sve"),
])  # fmt: skip
def test_a_view_of_the_root_describes_the_core(tmp_path: Path, cpu: str, part: str, has: str, lacks: str) -> None:
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    (root / "usr" / "file").write_text("there")
    view = described_root(root, cpu, 4)
    assert (view / "usr" / "file").read_text() == "there"
    cpuinfo = (view / "proc" / "cpuinfo").read_text()
    assert cpuinfo.count("processor\t:") == 4
    assert cpuinfo.count(f"CPU part\t: {part}\n") == 4
    features = cpuinfo.split("Features\t: ")[1].splitlines()[0].split()
    assert has in features
    assert lacks not in features
    system = view / "sys/devices/system/cpu"
    assert (system / "online").read_text() == "0-3\n"
    assert (system / "cpu3/topology/core_id").read_text() == "3\n"
    assert described_root(root, cpu, 4) == view
    assert described_root(root, cpu, 1) != view


def test_every_core_can_be_described(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for cpu in CPU_MODELS:
        described_root(tmp_path / "root", cpu, 1)
        assert "asimd" in cpu_features(cpu)


@pytest.fixture(scope="session")
def userland() -> Userland:
    """The real one; it is fetched once in the life of the cache."""
    try:
        return arm_userland([])
    except SparrowError as error:
        pytest.skip(f"no userland for arm64: {error.got.splitlines()[0]}")


@pytest.mark.qemu
def test_a_script_sees_the_emulated_core_and_nothing_of_this_machine(
    userland: Userland, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "mine")
    script = tmp_path / "script.py"
    script.write_text("import json, os, platform, sys\n"
                      "text = open('/proc/cpuinfo').read()\n"
                      "print(json.dumps([platform.machine(), text.count('0xd0b'), os.cpu_count(), sys.argv[1:],\n"
                      "                  os.environ.get('PYTHONSTARTUP'), os.environ['EXTRA'],\n"
                      "                  os.environ['ORT_DISABLE_TELEMETRY']]))\n"
                      "sys.exit(3)\n")  # fmt: skip
    result = userland.run(script, ["one", "two"], cpu="cortex-a76", cores=8, environment={"EXTRA": "yes"})
    assert (result.exit_code, result.stderr) == (3, "")
    assert json.loads(result.stdout) == ["aarch64", 8, 8, ["one", "two"], None, "yes", "1"]
    assert result.counts is None

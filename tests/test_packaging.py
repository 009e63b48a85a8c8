"""The wheel holds everything that the checkout has, and works outside it."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = ("benchmarks", "deploy", "kernels", "models", "quantize")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of this checkout was unpacked into."""
    folder = tmp_path_factory.mktemp("wheel")
    names = tracked_files("")
    for name in names:  # a copy: building in place would leave folders behind
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder,
               folder / "source"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def tracked_files(prefix: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "--", prefix or "."], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_every_file_of_the_packages_is_in_the_wheel(installed):
    missing = [name for top in TOP_LEVEL for name in tracked_files(top) if not (installed / "sparrow" / name).is_file()]
    assert missing == []


def test_nothing_else_is_installed(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"sparrow"}


@pytest.mark.tvm
def test_the_wheel_compiles_a_network_outside_the_checkout(installed, tmp_path):
    import onnx

    from .deploy.networks import residual_network

    onnx.save(residual_network(), tmp_path / "network.onnx")
    program = (
        "import sparrow.kernels; print(sparrow.kernels.__file__)\nfrom sparrow.deploy.cli import main\n"
        "import sys; sys.argv[1:] = ['compile', 'network.onnx', '--target', 'cortex-a76', '-o', 'out']\nmain()"
    )
    # The libraries' folder by path, not as a site folder: the editable install of the checkout stays out of it.
    path = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    result = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": path}, timeout=120, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert str(installed) in result.stdout.splitlines()[0]
    assert (tmp_path / "out" / "sparrow_run").is_file()

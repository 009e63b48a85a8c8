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
    copy_sources(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder,
               folder / "source"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def copy_sources(folder: Path) -> None:
    """Copy the checkout: building in place would leave folders behind."""
    for name in source_files("."):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())


def source_files(prefix: str) -> list[str]:
    """Files that are committed, or could be, without results that are kept for readers of the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", prefix]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0")
            if (ROOT / name).is_file() and not name.startswith("benchmarks/results/")]  # fmt: skip


def test_every_file_of_the_packages_is_in_the_wheel(installed):
    missing = [name for top in TOP_LEVEL for name in source_files(top) if not (installed / "sparrow" / name).is_file()]
    assert missing == []


def test_the_extras_are_declared(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    extras = {line.split(": ")[1] for line in metadata.read_text().splitlines() if line.startswith("Provides-Extra: ")}
    assert extras == {"bench", "dev", "tensorboard", "train"}


def test_nothing_else_is_installed(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"sparrow"}


def test_the_source_distribution_makes_the_same_wheel(installed, tmp_path):
    copy_sources(tmp_path / "source")
    program = f"import setuptools.build_meta as build; print(build.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "source", check=True, capture_output=True,
                   timeout=300)  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path,
                    archive], check=True, capture_output=True, timeout=300)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("sparrow/")}
    assert files == {str(path.relative_to(installed)) for path in (installed / "sparrow").rglob("*") if path.is_file()}


# Refuses the modules of the extra for training, as if they were not installed.
WITHOUT_TRAINING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torch_pruning', 'sklearn'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.tvm
def test_the_wheel_compiles_a_network_outside_the_checkout(installed, tmp_path):
    import onnx

    from .deploy.networks import residual_network

    onnx.save(residual_network(), tmp_path / "network.onnx")
    program = WITHOUT_TRAINING + (
        "import sparrow.kernels; print(sparrow.kernels.__file__)\nfrom sparrow.deploy.cli import main\n"
        "sys.argv[1:] = ['compile', 'network.onnx', '--target', 'cortex-a76', '-o', 'out']\nmain()"
    )
    # The libraries' folder by path, not as a site folder: the editable install of the checkout stays out of it.
    path = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    result = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": path}, timeout=300, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert str(installed) in result.stdout.splitlines()[0]
    assert (tmp_path / "out" / "sparrow_run").is_file()


def test_training_is_an_extra_and_says_so(installed, tmp_path):
    program = WITHOUT_TRAINING + "from sparrow.deploy.cli import main\nmain()"
    path = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])

    def sparrow(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-S", "-c", program, *arguments], cwd=tmp_path, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": path}, timeout=300, check=False)  # fmt: skip

    failed = sparrow("train", "--model", "digits", "--data", "digits", "-o", "digits.pt")
    assert failed.returncode == 1
    assert "next:" in failed.stderr and "'sparrow-mobile[train]'" in failed.stderr
    for command in ("compile", "verify", "bench", "predict", "inspect", "report"):
        assert sparrow(command, "--help").returncode == 0

"""The recipes of CONTRIBUTING.md, carried out as they stand on a copy of the sources."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parent.parent
TOP_LEVEL = ("benchmarks", "deploy", "kernels", "models", "quantize")
STEP = re.compile(r"^`([^`]+)`, (a new file|(?:after|before) the line `([^`]+)`):\n\n```\w+\n(.*?)^```$", re.M | re.S)


def sections() -> dict[str, str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout without its history, as the package ``sparrow``."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*TOP_LEVEL, "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "site" / "sparrow").mkdir(parents=True)
    for name in TOP_LEVEL:
        (tmp_path / "site" / "sparrow" / name).symlink_to(tmp_path / name)
    return tmp_path


def follow(recipe: str, copy: Path) -> list[Path]:
    """Carry out the steps of a section; returns the files that it changed."""
    changed = []
    for name, what, anchor, code in STEP.findall(sections()[recipe]):
        file = copy / name
        if what == "a new file":
            assert not file.exists()
            file.write_text(code, encoding="utf-8")
        else:
            text = file.read_text(encoding="utf-8")
            assert text.count(f"{anchor}\n") == 1, f"{name} has no single line {anchor!r}"
            new = f"{anchor}\n{code}" if what.startswith("after") else f"{code}{anchor}\n"
            file.write_text(text.replace(f"{anchor}\n", new), encoding="utf-8")
        changed.append(file)
    return changed


def python(copy: Path, *arguments: str) -> str:
    # The libraries' folder by path, not as a site folder: the editable install of the checkout stays out of it.
    path = os.pathsep.join([str(copy / "site"), sysconfig.get_paths()["purelib"]])
    result = subprocess.run([sys.executable, "-S", *arguments], cwd=copy, capture_output=True, text=True, timeout=300,
                            env={**os.environ, "PYTHONPATH": path}, check=False)  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def sparrow(copy: Path, command: str) -> str:
    return python(copy, "-c", "from sparrow.deploy.cli import main; main()", *command.split())


def test_every_recipe_has_steps():
    assert {name for name, text in sections().items() if STEP.search(text)} == {
        "A network", "A quantizer", "A pass", "A kernel",
    }  # fmt: skip


def test_a_network(copy):
    follow("A network", copy)
    sparrow(copy, "train --model two-convolutions --data digits --epochs 1 --threads 1 -o net.pt")
    sparrow(copy, "export net.pt -o net.onnx")
    assert (copy / "net.onnx").is_file()


def test_a_quantizer(copy):
    follow("A quantizer", copy)
    sparrow(copy, "train --model digits --data digits --epochs 1 --threads 1 -o float.pt")
    sparrow(copy, "quantize --model digits --checkpoint float.pt --method powers --data digits --epochs 0 -o powers.pt")
    sparrow(copy, "export powers.pt -o powers.onnx")
    program = (
        "import numpy as np, onnx; from onnx import numpy_helper\n"
        "model = onnx.load('powers.onnx')\n"
        "arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]\n"
        "weights = [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]\n"
        "print(sorted({abs(int(value)) for array in weights for value in np.unique(array)}))"
    )
    assert set(map(int, re.findall(r"\d+", python(copy, "-c", program)))) <= {0, 1, 2, 4, 8, 16, 32, 64}


@pytest.mark.tvm
def test_a_pass(copy):
    follow("A pass", copy)
    out = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/deploy/passes/test_cancel_negatives.py")
    assert "3 passed" in out
    assert "cancel-negatives" in python(copy, "-c", "import sparrow.deploy.pipeline as p; print(dict(p.PHASES))")


def test_a_kernel(copy):
    source, _ = follow("A kernel", copy)
    out = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_registry.py")
    assert "passed" in out and "failed" not in out
    program = (
        "from pathlib import Path; from sparrow.deploy.toolchain import find_toolchain\n"
        "from sparrow.kernels.registry import select_kernel\n"
        f"find_toolchain().compile(Path({str(source)!r}), Path('kernel.o'), isa='neon')\n"
        "print(select_kernel('GEMV_F32', ['neon']).symbol)"
    )
    assert python(copy, "-c", program).strip() == "spw_gemv_clamp_f32_f32_f32_1x4__neon"

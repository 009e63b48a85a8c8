"""Rules of the repository that no single module can hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN_NAME = "tests/test_architecture.py"

# Package -> what it may import of Sparrow. The command line, deploy/cli, may import everything.
ALLOWED = {
    "kernels": {"kernels"},
    "models": {"models", "kernels.errors"},
    "quantize": {"quantize", "kernels"},
    "deploy": {"deploy", "kernels"},
    "benchmarks": {"benchmarks", "deploy", "kernels"},
}
EXCEPTIONS = {"quantize/recipes.py": {"models"}}
THIRD_PARTY = {"kernels": {"torch", "tvm", "onnx"}, "deploy": {"torch"}, "models": {"tvm", "onnx"},
               "quantize": {"tvm"}, "benchmarks": {"torch", "tvm"}}  # fmt: skip


def sources() -> list[Path]:
    return sorted(path for top in ALLOWED for path in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT)
    if relative.parts[:2] == ("deploy", "cli"):
        return
    top = relative.parts[0]
    allowed = ALLOWED[top] | EXCEPTIONS.get(relative.as_posix(), set())
    for module in imports(path):
        if module.startswith("sparrow."):
            name = module.removeprefix("sparrow.")
            assert any(name == entry or name.startswith(f"{entry}.") for entry in allowed), f"{relative}: {module}"
        assert module.split(".")[0] not in THIRD_PARTY[top], f"{relative} imports {module}"


def test_no_folder_hides_a_module():
    """Where both have one name, Python imports the module, and type checkers the folder."""
    assert not [path for path in sources() if path.with_suffix("").is_dir()]


def test_help_imports_neither_torch_nor_tvm():
    program = (
        "import sys\nfrom sparrow.deploy.cli.main import group\n"
        "group.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'tvm', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "compile" in result.stdout


def test_no_file_names_a_machine_or_leaves_work_unfinished():
    words = re.compile(r"/(?:home|root|work)/|\b(?:TODO|FIXME|XXX)\b|NotImplementedError")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if Path(name).suffix in {".py", ".c", ".h", ".md", ".toml", ".txt", ""} and name != OWN_NAME:
            path = ROOT / name
            match = words.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
            assert match is None, f"{name}: {match[0] if match else ''}"

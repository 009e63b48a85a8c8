"""Names, and a user's own network given as path/to/file.py:factory."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import MODELS, build_model, model_input_shape

EXPECTED_NAMES = {
    *("digits", "vgg-small", "resnet18", "resnet50", "mobilenet-v2", "mnasnet", "proxylessnas"),
    *(f"resnet{depth}{option}" for depth in (20, 32, 44, 56) for option in ("", "-b")),
}


def test_names() -> None:
    assert set(MODELS) == EXPECTED_NAMES


def test_names_need_no_pytorch() -> None:
    code = "import sys; from sparrow.models import MODELS; sys.exit('torch' in sys.modules or not MODELS)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["digits"].classes = 3  # type: ignore[misc]


def test_input_shape() -> None:
    assert model_input_shape("resnet20") == (3, 32, 32)
    assert model_input_shape("digits") == (1, 8, 8)
    with pytest.raises(SparrowError, match="unknown model"):
        model_input_shape("net.py:build")


@pytest.mark.parametrize("name", ["digits", "resnet20-b", "vgg-small", "resnet18", "mobilenet-v2", "mnasnet"])
def test_number_of_classes(name: str) -> None:
    last = [module for module in build_model(name, classes=7).modules() if isinstance(module, nn.Linear)][-1]
    assert last.out_features == 7


@pytest.mark.parametrize("classes", [0, -1])
def test_too_few_classes(classes: int) -> None:
    with pytest.raises(SparrowError, match=f"classes is {classes}"):
        build_model("digits", classes=classes)


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(SparrowError) as caught:
        build_model("mobilnet-v2")
    assert "did you mean 'mobilenet-v2'" in caught.value.expected
    assert "file.py:factory" in caught.value.next_step


def user_file(folder: Path, text: str) -> Path:
    path = folder / "net.py"
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return path


def test_user_factory_function_and_class(tmp_path: Path) -> None:
    text = "class Net(nn.Sequential):\n    pass\n\ndef build(width=3):\n    return nn.Linear(width, 2)\n"
    path = user_file(tmp_path, text)
    function_result = build_model(f"{path}:build")
    assert isinstance(function_result, nn.Linear)
    assert function_result.in_features == 3
    assert type(build_model(f"{path}:Net")).__name__ == "Net"


def test_user_file_may_import_its_neighbour_and_use_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "sparrow_test_neighbour.py").write_text("WIDTH = 5\n")
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Sizes:\n    width: int = 4\n"
        "def build():\n    import sparrow_test_neighbour as s\n    return nn.Linear(s.WIDTH, Sizes().width)\n"
    )
    (tmp_path / "net.py").write_text(text)
    path_before = list(sys.path)
    model = build_model(f"{tmp_path / 'net.py'}:build")
    sys.modules.pop("sparrow_test_neighbour")
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (5, 4)
    assert sys.path == path_before


def test_an_edited_user_file_is_read_again(tmp_path: Path) -> None:
    for width in (2, 30):
        path = user_file(tmp_path, f"def build():\n    return nn.Linear({width}, 1)\n")
        model = build_model(f"{path}:build")
        assert isinstance(model, nn.Linear)
        assert model.in_features == width


@pytest.mark.parametrize(
    ("text", "factory", "got", "expected"),
    [
        ("def build():\n    return nn.ReLU()\n", "biuld", "has no biuld", "did you mean 'build'"),
        ("build = 3\n", "build", "is int, which cannot be called", "function or class"),
        ("def build():\n    raise OSError('gone')\n", "build", r"OSError: gone \(.*net.py, line 4\)", "no arguments"),
        ("def build(width):\n    return nn.ReLU()\n", "build", "TypeError: .*width", "no arguments"),
        ("def build():\n    return nn.ReLU().state_dict()\n", "build", "returned collections.OrderedDict", "Module"),
        ("def build():\n    return None\n", "build", "returned builtins.NoneType", "Module"),
        ("def build(:\n", "build", "cannot be imported: SyntaxError", "without an error"),
        ("import nothing_of_this_name\n", "build", r"ModuleNotFoundError.*line 3\)", "without an error"),
        ("raise SystemExit(0)\n", "build", "SystemExit", "without an error"),
    ],
)
def test_user_factory_errors(tmp_path: Path, text: str, factory: str, got: str, expected: str) -> None:
    path = user_file(tmp_path, text)
    modules_before, path_before = set(sys.modules), list(sys.path)
    with pytest.raises(SparrowError, match=got) as caught:
        build_model(f"{path}:{factory}")
    assert expected in caught.value.expected
    assert caught.value.next_step
    assert sys.path == path_before
    if "cannot be imported" in caught.value.got:
        assert set(sys.modules) == modules_before


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("missing/net.py:build", "there is no file"),
        ("net.py", "does not name a Python file and a factory"),
        ("net.py:", "does not name a Python file and a factory"),
        (":build", "does not name a Python file and a factory"),
    ],
)
def test_user_file_missing_or_factory_unnamed(name: str, got: str) -> None:
    with pytest.raises(SparrowError, match=got) as caught:
        build_model(name)
    assert "file.py:factory" in caught.value.expected
    assert caught.value.next_step


def test_user_file_that_is_no_python(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x07")
    with pytest.raises(SparrowError, match="not a Python source file"):
        build_model(f"{path}:build")

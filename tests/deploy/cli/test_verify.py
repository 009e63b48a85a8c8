"""``sparrow verify`` on a user's own images and arrays."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sparrow.deploy.cli.verify import command
from sparrow.kernels.errors import SparrowError

from ...benchmarks.runners.runner_bundle import build_bundle

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing"),
]

PLAIN = ["--pixel-mean", "0", "--pixel-deviation", "1"]


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("verify"))


def verify(bundle: Path, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(bundle), *map(str, arguments)])


def test_a_folder_of_photos_is_compared(doubling, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((2, 3), 10 * number, np.uint8)).save(tmp_path / f"it's {number}.png")
    result = verify(doubling, "--input", tmp_path, "--images", 2, *PLAIN, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"], found["agreement"], found["exactly_equal"]) == (2, 1, 1)
    assert found["inputs"] == f"samples of {tmp_path}"


def test_preprocessing_reaches_the_network(doubling, tmp_path):
    np.full(6, -1, np.float32).tofile(tmp_path / "wrong.raw")  # negative numbers get a wrong answer
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "image.png")
    for arguments in (["--input", tmp_path / "wrong.raw"], ["--input", tmp_path / "image.png", "--pixel-mean", 8,
                                                            "--pixel-deviation", 1]):  # fmt: skip
        result = verify(doubling, *arguments)
        assert isinstance(result.exception, SparrowError) and result.exception.exit_code == 3, result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [(np.zeros((2, 1, 2, 4), np.float32), "has the shape"), (np.zeros((0, 1, 2, 3), np.float32), "has the shape"),
     (np.full((1, 1, 2, 3), np.nan, np.float32), "no finite numbers")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(doubling, tmp_path, content, message):
    np.save(tmp_path / "input.npy", content)
    result = verify(doubling, "--input", tmp_path / "input.npy")
    assert isinstance(result.exception, SparrowError) and message in str(result.exception)


def test_two_sources_are_a_usage_error(doubling, tmp_path):
    assert verify(doubling, "--input", tmp_path, "--data", "digits").exit_code == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--pixel-mean", "0"], "--pixel-mean belongs to --input"),
    (["--affinity", "big"], "--affinity belongs to --runner qemu-system, got --runner qemu"),
    (["--runner", "qemu-system", "--jobs", "2"], "--jobs belongs to --runner qemu, got --runner qemu-system"),
])  # fmt: skip
def test_options_that_would_be_ignored_are_refused(doubling, arguments, message):
    result = verify(doubling, *arguments)
    assert result.exit_code == 2
    assert message in result.output

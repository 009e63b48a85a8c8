"""``sparrow run`` under QEMU: images of a user's own, the top classes, other outputs, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sparrow.deploy.cli.run import ClassScore, _best, command
from sparrow.kernels.errors import SparrowError

from ...benchmarks.runners.runner_bundle import build_bundle

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing"),
]

PLAIN = ["--pixel-mean", "0", "--pixel-deviation", "1"]
# Names that a shell, a terminal or an encoding may stumble over.
NAMES = ["it's a \"cat\".png", "two\nlines.png", "Kätzchen 猫.png", "$HOME `id` *; exit.png"]


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It doubles the six pixels of a gray image of 2 x 3, in a folder with an awkward name."""
    built = build_bundle(tmp_path_factory.mktemp("run"))
    return built.rename(built.parent / "my bundle's \"ü\"\n$x")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[1, 5, 3], [6, 2, 4]], np.uint8)).save(path)
    return path


def run(bundle: Path, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(bundle), *map(str, arguments)])


def test_the_top_classes_are_printed_with_their_labels(doubling, image, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\x1b[31m\ne\nHündin\n", encoding="utf-8")
    result = run(doubling, "--input", image, "--labels", labels, "--top", 2, *PLAIN)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{image}: doubling on QEMU"
    # softmax of 2, 10, 6, 12, 4, 8; what moves a terminal is not printed
    assert lines[1].split() == ["1", "86.47%", "d?[31m,", "class", "3", "(score", "12.0000)"]
    assert lines[2].split() == ["2", "11.70%", "b,", "class", "1", "(score", "10.0000)"]
    assert len(lines) == 3


def test_images_arrays_and_raw_numbers_give_the_same(doubling, image, tmp_path):
    pixels = np.array([1, 5, 3, 6, 2, 4], np.float32)
    np.save(tmp_path / "pixels.npy", pixels.reshape(1, 1, 2, 3))
    pixels.tofile(tmp_path / "pixels.raw")
    inputs = [part for name in ("image.png", "pixels.npy", "pixels.raw") for part in ("--input", tmp_path / name)]
    result = run(doubling, *inputs, *PLAIN, "--json", "-o", tmp_path / "all.npz", "--threads", 2)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["bundle"], found["runner"], len(found["results"])) == ("doubling", "QEMU", 3)
    assert [[score["index"] for score in row["top"]] for row in found["results"]] == [[3, 1, 5, 2, 4]] * 3
    with np.load(tmp_path / "all.npz") as outputs:
        assert outputs["y"].tolist() == [[(2 * pixels).tolist()]] * 3


def test_the_network_says_how_bytes_become_numbers_and_what_its_classes_are(doubling, image, tmp_path):
    bundle = shutil.copytree(doubling, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["metadata"] = {"sparrow.pixel_mean": "[0]", "sparrow.pixel_deviation": "[0.5]",
                            "sparrow.class_names": json.dumps(["a", "b", "c", "d\x1b", "e", "f"])}  # fmt: skip
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    found = json.loads(run(bundle, "--input", image, "--json").stdout)["results"][0]["top"]
    assert [(score["label"], score["score"]) for score in found[:2]] == [("d\x1b", 24.0), ("b", 20.0)]
    said = run(bundle, "--input", image, *PLAIN, "--top", 1)  # what is typed comes first
    assert said.stdout.splitlines()[1].split()[2:] == ["d?,", "class", "3", "(score", "12.0000)"]
    for unfit in ('["a", "b"]', "no JSON", "7"):
        manifest["metadata"]["sparrow.class_names"] = unfit
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        top = json.loads(run(bundle, "--input", image, "--json").stdout)["results"][0]["top"]
        assert [score["label"] for score in top] == [""] * 5


@pytest.mark.parametrize("name", NAMES)
def test_file_names_that_a_shell_would_take_apart(doubling, image, name):
    result = run(doubling, "--input", image.rename(image.with_name(name)), *PLAIN)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].endswith(f"{name}: doubling on QEMU".replace("\n", "?"))
    assert result.stdout.splitlines()[1].split()[3] == "3"


def test_probabilities_stay_and_scores_become_some():
    assert _best(np.array([[0.25, 0.75]], np.float32), ("no", "yes"), 1) == [ClassScore(1, "yes", 0.75, 0.75)]
    likely = _best(np.array([[[[1000.0]], [[0.0]]]], np.float32), (), 5)
    assert [(score.index, score.probability) for score in likely] == [(0, 1.0), (1, 0.0)]
    assert _best(np.zeros((2, 3), np.float32), (), 5) == _best(np.zeros((1, 1), np.float32), (), 5) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.jpg"], "missing.jpg cannot be decoded"),
        (["--input", "missing.npy"], "missing.npy does not exist"),
        (["--input", "image.png"], "takes gray images"),
        (["--input", "image.png", *PLAIN, "--labels", "three.txt"], "3 labels\n  expected: 6"),
        (["--input", "image.png", *PLAIN, "--labels", "none.txt"], "cannot read the labels"),
        (["--input", "image.png", *PLAIN, "--runner", "local"], "expected: Linux on aarch64"),
        (["--input", "image.png", *PLAIN, "-o", "no/folder.npz"], "mkdir -p"),
    ],
)
def test_what_cannot_be_run_is_explained(doubling, image, monkeypatch, arguments, message):
    monkeypatch.chdir(image.parent)
    Path("three.txt").write_text("a\nb\nc\n")
    if "local" in arguments and os.uname().machine == "aarch64":
        pytest.skip("this machine is a device")
    result = run(doubling, *arguments)
    assert isinstance(result.exception, SparrowError), result.output
    assert message in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--input", "x", "--device", "S1", "--host", "h"], ["--input", "x", "--runner", "qemu", "--device", "S1"],
     ["--input", "x", "--runner", "ssh"], ["--input", "x", "--host", "h", "--cpu", "cortex-a53"],
     ["--input", "x", "-o", "out.npy"], ["--input", "x", "--pixel-deviation", "0"]],
)  # fmt: skip
def test_options_that_contradict_are_usage_errors(doubling, arguments, image):
    arguments = [str(image) if part == "x" else part for part in arguments]
    assert run(doubling, *PLAIN, *arguments).exit_code == 2

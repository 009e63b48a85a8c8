"""The programs of ``examples/``, as far as they can be built and run here."""

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparrow.benchmarks.harness import run_reference
from sparrow.benchmarks.runners import qemu
from sparrow.benchmarks.runners.arm_userland import Userland, arm_userland
from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError

from .elf import LOAD, Elf

EXAMPLES = Path(__file__).parents[2] / "examples"
BOARD = EXAMPLES / "raspberrypi"

pytestmark = [
    pytest.mark.tvm,
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing"),
]


@pytest.fixture(scope="module")
def image(residual_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    shape = load_bundle(residual_bundle).manifest["inputs"][0]["shape"]
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def expected(residual_bundle: Path, image: np.ndarray) -> list[tuple[float, int]]:
    scores = run_reference(load_bundle(residual_bundle), image)[0]
    return [(float(scores[index]), int(index)) for index in np.argsort(-scores)[:5]]


@pytest.fixture(scope="module")
def python() -> Userland:
    try:
        return arm_userland(["numpy"])
    except SparrowError as error:
        pytest.skip(f"no Python for arm64: {error}")


def test_c_on_a_board(residual_bundle, image, expected, tmp_path):
    toolchain = find_toolchain()
    flags = [f"-I{residual_bundle}", "-include", "network.h", "-DPROGRAM=network_program"]
    toolchain.compile(BOARD / "classify.c", tmp_path / "classify.o", flags=flags)
    toolchain.link_executable([tmp_path / "classify.o", residual_bundle / "libnetwork.a"], tmp_path / "classify")
    image.tofile(tmp_path / "image.raw")
    result = qemu.run(tmp_path / "classify", [str(tmp_path / "image.raw"), "2"], cpu="cortex-a76")
    assert result.exit_code == 0, result.stderr
    found = [(float(score), int(index)) for score, index in re.findall(r"(\S+)  class (\d+)", result.stdout)]
    assert [index for _, index in found] == [index for _, index in expected]
    assert np.allclose([score for score, _ in found], [score for score, _ in expected], atol=2e-4)
    assert qemu.run(tmp_path / "classify", [], cpu="cortex-a76").exit_code == 2
    (tmp_path / "short.raw").write_bytes(b"1234")
    short = qemu.run(tmp_path / "classify", [str(tmp_path / "short.raw")], cpu="cortex-a76")
    assert short.exit_code == 1 and "got 4 bytes, expected" in short.stderr
    threads = qemu.run(tmp_path / "classify", [str(tmp_path / "image.raw"), "99"], cpu="cortex-a76")
    assert threads.exit_code == 1 and "got 99, expected 1 to 64" in threads.stderr


def test_python_on_a_board(residual_bundle, image, expected, python, tmp_path):
    np.save(tmp_path / "image.npy", image)
    (tmp_path / "labels.txt").write_text("\n".join(f"label {index}" for index in range(10)))
    arguments = [str(residual_bundle), str(tmp_path / "image.npy"), str(tmp_path / "labels.txt")]
    result = python.run(BOARD / "classify.py", arguments, cpu="cortex-a76", cores=4)
    assert result.exit_code == 0, result.stderr
    found = [(float(score), int(index)) for score, index in re.findall(r"(\S+)  label (\d+)", result.stdout)]
    assert [index for _, index in found] == [index for _, index in expected]
    assert np.allclose([score for score, _ in found], [score for score, _ in expected], atol=2e-4)


def test_a_photo_becomes_what_the_network_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BOARD))
    classify, tensors = importlib.import_module("classify"), importlib.import_module("sparrow_bundle")
    Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).save(tmp_path / "photo.png")
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(tmp_path / "gray.png")
    for name, channels, mean in (("photo.png", 3, [1.0, 2.0, 3.0]), ("gray.png", 1, [4.0])):
        known = {"sparrow.pixel_mean": mean, "sparrow.pixel_deviation": [0.5] * channels}
        tensor = tensors.Tensor("x", (1, channels, 2, 3), np.dtype(np.float32))
        found = classify.read_image(tmp_path / name, tensor, known)
        assert found.shape == (channels, 2, 3) and found.dtype == np.float32
        assert found[:, 1, 2].tolist() == [(5 * channels + i - mean[i]) / 0.5 for i in range(channels)]


# Runs in the arm64 Python: a bundle for several threads, and what it refuses.
REFUSALS = """
import sys, threading
import numpy as np
from sparrow_bundle import SparrowBundle, SparrowRuntimeError

bundle, empty = sys.argv[1:]
with SparrowBundle(bundle, threads=2) as network:
    tensor = network.inputs[0]
    print(network.name, [t.name for t in network.inputs], [(t.name, t.shape, str(t.dtype)) for t in network.outputs])
    image = np.linspace(-1, 1, int(np.prod(tensor.shape)), dtype=np.float64).reshape(tensor.shape)
    first = network(image)[0]
    results = [None] * 4
    def call(index):
        results[index] = network(image[0])[0]
    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print("same", all((first == result).all() for result in results), first is not results[0])
    attempts = [lambda: network(), lambda: network(image[..., 1:]), lambda: network(image.astype(complex)),
                lambda: SparrowBundle(bundle, threads=65), lambda: SparrowBundle(bundle, cpus=[5000]),
                lambda: SparrowBundle(empty)]
    for attempt in attempts:
        try:
            attempt()
            print("accepted")
        except (ValueError, SparrowRuntimeError) as error:
            print(type(error).__name__, error)
network.close()
try:
    network(image)
except SparrowRuntimeError as error:
    print(error)
"""


def test_python_refuses_what_does_not_fit(residual_bundle, python, tmp_path):
    shutil.copy(BOARD / "sparrow_bundle.py", tmp_path)
    (tmp_path / "refusals.py").write_text(REFUSALS)
    result = python.run(tmp_path / "refusals.py", [str(residual_bundle), str(tmp_path)], cpu="cortex-a53", cores=4)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "network ['input'] [('logits', (1, 10), 'float32')]"
    assert lines[1] == "same True True"
    assert lines[2] == "ValueError network takes 1 inputs, got 0"
    assert lines[3].startswith("ValueError input input has the shape (1, 3, ")
    assert lines[4] == "ValueError input input is complex128, expected float32"
    assert "got 65, expected 1 to 64" in lines[5] and "got 5000, expected different numbers" in lines[6]
    assert lines[7].startswith(f"SparrowRuntimeError {tmp_path} is no bundle")
    assert lines[8] == "network is closed"


# Where Debian's packages of Java's development kits put the header that an NDK has as well.
JNI_HEADERS = sorted(Path("/usr/lib/jvm").glob("*/include/jni.h"))
APP = EXAMPLES / "android" / "app" / "src" / "main"


def test_kotlin_and_c_declare_the_same_functions():
    kotlin = (APP / "java" / "org" / "sparrow" / "example" / "Classifier.kt").read_text(encoding="utf-8")
    c = (APP / "cpp" / "sparrow_jni.c").read_text(encoding="utf-8")
    assert re.search(r"^package (\S+)", kotlin, re.MULTILINE)[1] == "org.sparrow.example"
    declared = set(re.findall(r"external fun (\w+)\(", kotlin))
    assert declared == set(re.findall(r"Java_org_sparrow_example_Classifier_(\w+)\(", c))
    assert len(declared) == 4


@pytest.mark.skipif(not JNI_HEADERS, reason="jni.h is missing (apt-get install openjdk-17-jdk-headless)")
def test_the_native_side_of_the_app(residual_bundle, image, expected, tmp_path):
    toolchain, include = find_toolchain(), JNI_HEADERS[0].parent
    flags = [f"-I{include}", f"-I{include / 'linux'}", f"-I{residual_bundle}", '-DSPARROW_HEADER="network.h"',
             "-DSPARROW_PROGRAM=network_program"]  # fmt: skip
    for source in (APP / "cpp" / "sparrow_jni.c", Path(__file__).with_name("jni_check.c")):
        toolchain.compile(source, tmp_path / f"{source.stem}.o", flags=flags)
    library = residual_bundle / "libnetwork.a"
    toolchain.link_executable([tmp_path / "jni_check.o", tmp_path / "sparrow_jni.o", library], tmp_path / "check")
    image.tofile(tmp_path / "image.raw")
    result = qemu.run(tmp_path / "check", [str(tmp_path / "image.raw")], cpu="cortex-a76")
    assert result.exit_code == 0, result.stderr
    shape, scores, thrown, short, refused, handle = result.stdout.splitlines()
    assert shape.split()[1:] == list(map(str, image.shape))
    values = np.array(scores.split()[1:], float)
    assert np.argsort(-values)[:5].tolist() == [index for _, index in expected]
    assert thrown.startswith("thrown java/lang/IllegalStateException: input input: got ")
    assert short == "short array refused, borrowed 0"
    assert refused.startswith("thrown java/lang/IllegalStateException: network: threads: got 99")
    assert handle == "handle 0"
    # As the app has it, but for the system's C library.
    toolchain.link_shared([tmp_path / "sparrow_jni.o", library], tmp_path / "libsparrow_jni.so", exports=["Java_*"])
    segments = Elf((tmp_path / "libsparrow_jni.so").read_bytes()).segments(LOAD)
    assert segments and all(alignment % 16384 == 0 for _, alignment in segments)

"""Verification and counting, on a bundle whose runner is a small C program: each output is twice the input."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparrow.benchmarks import harness, result_files
from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predict.blocks import MCA
from sparrow.benchmarks.predict.core import load_core
from sparrow.benchmarks.runners.qemu import Cache, find_qemu
from sparrow.deploy.bundle import MODEL, RUNNER, Bundle, load_bundle, write_manifest
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError

from .manifests import layer

SHAPE = (1, 1, 2, 3)
NUMBERS = 6

# What sparrow_run promises, for one input of six floats. A run costs 2001 instructions between its marks, in the first
# of its two operators, and four loads in the second; a worker thread of --threads 2 adds at least 20001. An image whose
# first number is negative is answered wrongly, one whose first number is below -90 hangs, and below -80 fails.
RUNNER_SOURCE = r"""
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void *work(void *unused) {
  __asm__ volatile("mov x0, #10000\n1: subs x0, x0, #1\n b.ne 1b" ::: "x0", "cc");
  return unused;
}
int main(int count, char **arguments) {
  const char *input = 0, *output = 0;
  int threads = 1, warmup = 0, repeat = 1;
  for (int index = 1; index + 1 < count; index += 2) {
    const char *name = arguments[index], *value = arguments[index + 1];
    if (!strcmp(name, "--input")) input = value;
    else if (!strcmp(name, "--output")) output = value;
    else if (!strcmp(name, "--threads")) threads = atoi(value);
    else if (!strcmp(name, "--warmup")) warmup = atoi(value);
    else if (!strcmp(name, "--repeat")) repeat = atoi(value);
    else return 2;
  }
  FILE *in = fopen(input, "rb"), *out = fopen(output, "wb");
  float image[6];
  while (fread(image, sizeof image, 1, in)) {
    if (image[0] < -90) for (;;) sleep(100);
    if (image[0] < -80) {
      fputs("sparrow_run: the network failed\n", stderr);
      return 1;
    }
    for (int run = 0; run < warmup + repeat; run++) {
      if (run >= warmup) __asm__ volatile("hint #120" ::: "memory");
      __asm__ volatile("hint #122" ::: "memory");
      if (threads == 1) {
        __asm__ volatile("mov x0, #1000\n1: subs x0, x0, #1\n b.ne 1b" ::: "x0", "cc");
      } else {
        pthread_t thread;
        pthread_create(&thread, 0, work, 0);
        pthread_join(thread, 0);
      }
      __asm__ volatile("hint #122\n .rept 4\n ldr x0, [sp]\n .endr" ::: "x0", "memory");
      if (run >= warmup) __asm__ volatile("hint #121" ::: "memory");
    }
    int wrong = image[0] < 0, broken = image[0] > 90;
    for (int index = 0; index < 6; index++) image[index] = wrong ? -2 * image[index] : 2 * image[index];
    if (broken) image[0] = nanf("");
    fwrite(image, sizeof image, 1, out);
  }
  fclose(out);
  return 0;
}
"""

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, toolchain = tmp_path_factory.mktemp("runner"), find_toolchain()
    (folder / "runner.c").write_text(RUNNER_SOURCE)
    toolchain.compile(folder / "runner.c", folder / "runner.o", flags=["-D_GNU_SOURCE"])
    toolchain.link_executable([folder / "runner.o"], folder / RUNNER)
    return folder / RUNNER


@pytest.fixture
def make_bundle(tmp_path: Path, runner: Path) -> MakeBundle:
    """A function that makes a bundle, of an integer network or of a float one."""

    def make(*, activations: str = "int8") -> Path:
        folder = tmp_path / activations
        folder.mkdir()
        shutil.copy(runner, folder)
        graph = helper.make_graph(
            [
                helper.make_node("Reshape", ["image", "size"], ["flat"]),
                helper.make_node("Add", ["flat", "flat"], ["y"]),
            ],
            "double",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, NUMBERS])],
            [helper.make_tensor("size", TensorProto.INT64, [2], [1, NUMBERS])],
        )
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / MODEL)
        tensors = {"inputs": [{"name": "image", "shape": list(SHAPE), "dtype": "float32"}],
                   "outputs": [{"name": "y", "shape": [1, NUMBERS], "dtype": "float32"}]}  # fmt: skip
        layers = [layer("layer", activations=activations)]
        write_manifest(folder, {"name": "double", "target": "cortex-a53", "layers": layers, "weights_bytes": 24,
                                "arena_bytes": 48, "metadata": {}, "steps": ["layer", "add"], **tensors})  # fmt: skip
        return folder

    return make


def make_images(count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(0.1, 1, (count, *SHAPE[1:])).astype(np.float32)


@pytest.mark.qemu
def test_equal_outputs_are_ok_and_keep_their_order(make_bundle: MakeBundle) -> None:
    images = make_images(300)  # more than two shares of 128
    steps: list[tuple[str, int, int]] = []
    labels = images.reshape(300, -1).argmax(axis=1)
    labels[:30] += 1
    result = harness.verify(make_bundle(), images, labels, cpu="cortex-a53", jobs=2,
                            on_progress=lambda *step: steps.append(step))  # fmt: skip
    assert result.ok and result.images == 300
    assert (result.agreement, result.exactly_equal, result.max_abs_difference) == (1, 1, 0)
    assert result.reference_top1 == result.bundle_top1 == 0.9
    result.require_ok()
    assert steps[-1] == ("QEMU", 300, 300) and ("ONNX Runtime", 300, 300) in steps


@pytest.mark.qemu
def test_integer_network_fails_below_99_percent(make_bundle: MakeBundle) -> None:
    bundle, images = make_bundle(), make_images(200)
    images[:2, 0, 0, 0] = -0.1
    assert harness.verify(bundle, images, cpu="cortex-a53").ok
    images[2, 0, 0, 0] = -0.1
    result = harness.verify(bundle, images, cpu="cortex-a53")
    assert not result.ok and result.agreement == 197 / 200
    assert (result.reference_top1, result.bundle_top1) == (None, None)
    with pytest.raises(SparrowError, match=r"98\.50%") as caught:
        result.require_ok()
    assert caught.value.exit_code == 3


@pytest.mark.qemu
def test_float_network_fails_by_its_relative_error(make_bundle: MakeBundle) -> None:
    images = make_images(200)
    images[7, 0, 0, 0] = -0.1
    result = harness.verify(make_bundle(activations="float32"), images, cpu="cortex-a53")
    assert not result.ok and not result.integer and result.agreement >= harness.MIN_AGREEMENT


def test_float_bound_is_relative_to_the_largest_output(make_bundle: MakeBundle) -> None:
    bundle = load_bundle(make_bundle(activations="float32"))
    reference = np.array([[0.0, 100.0]], np.float32)
    environment = result_files.Environment("", "", "", "", "")
    for difference, ok in ((0.09, True), (0.11, False)):
        moved = reference + np.float32([difference, 0])
        assert harness.compare(bundle, reference, moved, None, environment).ok is ok


def test_bound_of_half_precision_grows_with_the_root_of_its_layers(make_bundle: MakeBundle) -> None:
    bundle = load_bundle(make_bundle(activations="float16"))
    bundle.manifest["layers"] *= 4
    reference = np.array([[0.0, 100.0]], np.float32)
    environment = result_files.Environment("", "", "", "", "")
    bound = 100 * harness.HALF_LAYER_ERROR * 2
    for difference, ok in ((0.9 * bound, True), (1.1 * bound, False)):
        moved = reference + np.float32([difference, 0])
        result = harness.compare(bundle, reference, moved, None, environment)
        assert result.ok is ok and not result.integer and "half precision, of which there are 4" in result.bound


@pytest.mark.qemu
def test_not_a_number_is_never_ok(make_bundle: MakeBundle) -> None:
    images = make_images(2)
    images[1, 0, 0, 0] = 99
    with pytest.raises(SparrowError, match="NaN for 1 of 2 images") as caught:
        harness.verify(make_bundle(), images, cpu="cortex-a53")
    assert caught.value.exit_code == 3


@pytest.mark.qemu
def test_failing_runner_shows_its_message_and_stops_the_others(
    make_bundle: MakeBundle, assert_gone: Callable[[Path], None]
) -> None:
    bundle = load_bundle(make_bundle())
    images = make_images(256)
    images[0, 0, 0, 0] = -99  # the first process hangs, the second fails
    images[128, 0, 0, 0] = -85
    with pytest.raises(SparrowError, match="the network failed"):
        harness.run_bundle(bundle, images, cpu="cortex-a53", jobs=2)
    assert_gone(bundle.runner)


@pytest.mark.parametrize(
    "images",
    [np.zeros((0, *SHAPE[1:]), np.float32), np.zeros((2, 1, 3, 3), np.float32), np.zeros((2, *SHAPE[1:]))],
    ids=["none", "wrong size", "float64"],
)
def test_images_that_do_not_fit_are_refused(make_bundle: MakeBundle, images: np.ndarray) -> None:
    with pytest.raises(SparrowError, match="images of type") as caught:
        harness.run_reference(load_bundle(make_bundle()), images)
    assert str(list(SHAPE)) in caught.value.expected


def test_labels_must_match_the_images(make_bundle: MakeBundle) -> None:
    outputs = np.zeros((2, 3), np.float32)
    with pytest.raises(SparrowError, match="1 labels for 2 images"):
        harness.compare(
            load_bundle(make_bundle()), outputs, outputs, np.zeros(1, np.int64), result_files.Environment(*"12345")
        )


@pytest.mark.qemu
def test_changed_bundle_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    with (folder / RUNNER).open("ab") as file:
        file.write(b"x")
    with pytest.raises(SparrowError, match="was changed"):
        harness.bench(folder, cpu="cortex-a53")


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_bench_counts_each_number_of_threads(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    result = harness.bench(folder, cpu="cortex-a53", threads=[1, 2], warmup=2, repeat=3)
    one, two = result.inferences
    # The branch on the number of threads may lie inside the region.
    assert 2008 <= one.instructions <= 2020 and one.minimum == one.maximum == one.instructions
    assert (one.threads, one.count, len(one.by_thread)) == (1, 3, 1)
    assert two.threads == 2 and len(two.by_thread) >= 2 and sum(two.by_thread[1:]) >= 20_001
    assert two.minimum <= two.instructions <= two.maximum
    assert result.file_bytes[RUNNER] == (folder / RUNNER).stat().st_size
    assert (result.weights_bytes, result.arena_bytes) == (24, 48)
    for threads in result.inferences:
        before, layer, addition = threads.operators
        assert [(part.name, part.kernel) for part in threads.operators] == [
            (result_files.BEFORE_FIRST, ""), ("layer", "spw_double"), ("add", "")
        ]  # fmt: skip
        assert before.instructions == 1 and layer.instructions > 2000 and 4 <= addition.by_thread[0] <= 8
        assert sum(part.instructions for part in threads.operators) == pytest.approx(threads.instructions)
        assert all(len(part.by_thread) == len(threads.by_thread) for part in threads.operators)
    assert harness.bench(folder, cpu="cortex-a53", warmup=2, repeat=3).inferences == (one,)


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_bench_watches_memory_where_qemu_can(
    make_bundle: MakeBundle, counting: str, caplog: pytest.LogCaptureFixture
) -> None:
    caches = Cache(4096, 4, 64), Cache(65536, 4, 64)
    result = harness.bench(make_bundle(), cpu="cortex-a53", caches=caches, cores=["cortex-a53"])
    (one,) = result.inferences
    if counting == "execution log":
        assert (result.caches, one.memory, one.peak_memory_bytes, result.predictions) == (None, None, None, ())
        assert all(part.memory is None for part in one.operators)
        assert "without plugins: memory, caches and cycles are left out" in caplog.text
        return
    before, layer, addition = (part.memory for part in one.operators)
    assert before is not None and layer is not None and addition is not None and one.memory is not None
    assert (before.loads, before.l1_misses) == (0, 0)
    assert addition.loads >= 4 and addition.bytes_loaded >= 32
    assert one.memory.loads == before.loads + layer.loads + addition.loads
    assert one.peak_memory_bytes is not None and one.peak_memory_bytes % 4096 == 0 and one.peak_memory_bytes > 0
    assert result.caches == caches


@pytest.mark.qemu
def test_caches_are_those_of_the_core_unless_given(make_bundle: MakeBundle) -> None:
    if not find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins")
    core, folder = load_core("cortex-a76"), make_bundle()
    assert harness.bench(folder, cpu="cortex-a76", repeat=1).caches == (core.l1, core.l2)
    level = harness.bench(folder, cpu="armv8-a", repeat=1)
    memory = level.inferences[0].memory
    assert level.caches is None and memory is not None and (memory.l1_misses, memory.l2_misses) == (None, None)


def test_kernels_are_found_by_the_names_of_the_layers() -> None:
    layers = [{"name": name, "kernel": kernel} for name, kernel in (("fc", "a"), ("conv", "b"), ("fc", "c"))]
    bundle = Bundle(Path(), {"layers": layers, "steps": ["pack", "conv", "fc", "mean", "fc", "fc"]})
    assert harness._kernels(bundle) == ["", "b", "a", "", "c", ""]


@pytest.mark.qemu
def test_a_bundle_without_the_marks_of_its_steps_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "steps": ["layer"]}))
    with pytest.raises(SparrowError, match="marked 3 inferences of 3 sections") as caught:
        harness.bench(folder, cpu="cortex-a53")
    assert caught.value.expected == "3 of 2" and "compile the network again" in caught.value.next_step


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_result_document_names_what_it_was_got_with_and_holds_no_time(make_bundle: MakeBundle, tmp_path: Path) -> None:
    result = harness.bench(make_bundle(), cpu="cortex-a55")
    result_files.write_result(result, tmp_path / "bench.json")
    document = json.loads((tmp_path / "bench.json").read_text())
    assert (document["schema"], document["schema_version"]) == ("sparrow-benchmark", 2)
    environment = document["environment"]
    assert (environment["cpu"], environment["cpu_model"]) == ("cortex-a55", "cortex-a76")
    assert environment["sparrow_version"] and environment["qemu_version"]
    assert not any(word in json.dumps(document) for word in ("seconds", "latency", "_ms"))
    verification = result_files.VerifyResult("n", 1, 1, 1, 0, 0, 0, None, None, True, "", True, result.environment)
    assert asdict(verification)["schema"] == "sparrow-verification"


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which(MCA) is None, reason=f"{MCA} predicts cycles: apt-get install llvm-19")
def test_predictions_name_their_core_and_repeat(make_bundle: MakeBundle) -> None:
    if not find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins, which record executed blocks")
    first, second = (
        harness.bench(make_bundle(activations=name), cpu="cortex-a53", cores=["cortex-a53", "cortex-a76"]).predictions
        for name in ("int8", "float32")
    )
    assert first == second
    assert [guess.core.name for guess in first] == ["cortex-a53", "cortex-a76"]
    # A chain of decrements: LLVM's models say three cycles each on the in-order pipeline, one on the other.
    assert all(2008 <= guess.instructions <= 2020 for guess in first)
    factors = [guess.core.figures.pipeline_factor for guess in first]
    expected = [cycles * factor for cycles, factor in zip((3000, 1000), factors, strict=True)]
    assert [guess.pipeline_cycles for guess in first] == pytest.approx(expected, rel=0.1)


@pytest.mark.qemu
def test_without_llvm_the_counts_alone_are_returned(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocks, "MCA", "llvm-mca-that-is-not-there")
    result = harness.bench(make_bundle(), cpu="cortex-a53", cores=["cortex-a53"])
    assert result.predictions == () and result.inferences[0].instructions >= 2001
    assert "cycles cannot be predicted" in caplog.text and "apt-get install llvm-19" in caplog.text


def test_unknown_core_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match="cortex-b76") as caught:
        harness.bench(tmp_path, cpu="cortex-a53", cores=["cortex-b76"])
    assert "did you mean 'cortex-a76'" in caught.value.expected


@pytest.mark.parametrize("arguments", [{"threads": [0]}, {"repeat": 0}, {"warmup": -1}])
def test_bench_refuses_numbers_out_of_range(make_bundle: MakeBundle, arguments: dict[str, object]) -> None:
    with pytest.raises(SparrowError, match="threads"):
        harness.bench(make_bundle(), cpu="cortex-a53", **arguments)


def test_two_inputs_are_refused(make_bundle: MakeBundle) -> None:
    bundle = load_bundle(make_bundle())
    two = replace(bundle, manifest={**bundle.manifest, "inputs": bundle.manifest["inputs"] * 2})
    with pytest.raises(SparrowError, match="has the inputs"):
        harness.run_reference(Bundle(two.path, two.manifest), make_images(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_unwritable_result_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(SparrowError, match="permission denied"):
        result_files.write_result(
            result_files.BenchResult("n", 1, (), {}, 0, 0, result_files.Environment(*"12345")), tmp_path / "result.json"
        )


def test_reference_runs_a_network_that_onnx_runtime_refuses_to_optimize(tmp_path: Path) -> None:
    """An int8 grid before a Slice at opset 21: valid, and broken by ONNX Runtime 1.32's own rewriting."""
    from ..deploy.networks import residual_network

    onnx.save(residual_network(), tmp_path / MODEL)
    bundle = Bundle(tmp_path, {"inputs": [{"name": "input", "shape": [1, 3, 16, 16], "dtype": "float32"}]})
    assert harness.run_reference(bundle, np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 10)


def test_a_network_that_onnx_runtime_cannot_open_is_an_error(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no network")
    bundle = Bundle(tmp_path, {"inputs": [{"name": "input", "shape": [1, 3], "dtype": "float32"}]})
    with pytest.raises(SparrowError, match="ONNX Runtime cannot open"):
        harness.run_reference(bundle, np.zeros((1, 3), np.float32))


@pytest.mark.qemu
@pytest.mark.usefixtures("counting")
def test_any_program_is_counted_whole_and_by_its_regions(runner: Path, tmp_path: Path) -> None:
    np.ones(2 * NUMBERS, np.float32).tofile(tmp_path / "in.bin")
    arguments = ["--input", str(tmp_path / "in.bin"), "--output", str(tmp_path / "out.bin")]
    result = harness.bench_program(runner, arguments, cpu="cortex-a53")
    assert len(result.regions) == 2 and all(2008 <= count <= 2020 for count in result.regions)
    assert len(result.by_thread) == 1 and result.instructions > sum(result.regions)
    assert harness.bench_program(runner, arguments, cpu="cortex-a53").regions == result.regions


@pytest.mark.qemu
def test_a_program_that_fails_is_an_error_with_its_message(runner: Path, tmp_path: Path) -> None:
    np.full(NUMBERS, -85, np.float32).tofile(tmp_path / "in.bin")
    arguments = ["--input", str(tmp_path / "in.bin"), "--output", str(tmp_path / "out.bin")]
    with pytest.raises(SparrowError, match="exited with 1: sparrow_run: the network failed"):
        harness.bench_program(runner, arguments, cpu="cortex-a53")

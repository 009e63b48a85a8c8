"""The whole job on scikit-learn's handwritten digits, from fresh weights to a verified bundle and a report."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparrow.benchmarks.harness import bench, compare, run_bundle, run_reference
from sparrow.benchmarks.reports.demo import Count, DemoSummary, Example, Layer, Stage
from sparrow.benchmarks.result_files import VerifyResult, read_environment
from sparrow.benchmarks.runners.qemu import build_plugin, find_qemu
from sparrow.deploy.bundle import Bundle
from sparrow.deploy.compiler import compile_model, runtime_objects
from sparrow.deploy.toolchain import find_toolchain
from sparrow.quantize.api import layer_report, original_weight, quantize_, quantized_layers
from sparrow.quantize.configs import DgmsConfig, QuantizeConfig
from sparrow.quantize.data import ImageData, load_data
from sparrow.quantize.dgms import MixtureSharing
from sparrow.quantize.recipes import export_checkpoint, load_network, quantize_network, train_network
from sparrow.quantize.train import TrainConfig

CPUS = ("cortex-a53", "cortex-a76", "armv8.6-a+i8mm")
HISTOGRAM_BINS = 48
EXAMPLES = 24


@dataclass(frozen=True)
class DemoFiles:
    """Where the demo keeps what it makes."""

    folder: Path

    @property
    def float_checkpoint(self) -> Path:
        return self.folder / "digits-float.pt"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "digits-dgms4.pt"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run_demo(folder: Path, *, seed: int, on_step: Callable[[str], None]) -> tuple[DemoSummary, VerifyResult]:
    """Train, quantize, export, compile, verify and count.

    Args:
        folder: Existing folder for checkpoints, ONNX files, bundles; earlier results are replaced.
        seed: Seed of everything random.
        on_step: Called with a sentence before each step.

    Returns:
        What the report shows, and the verification of the 4-bit bundle.

    Raises:
        SparrowError: A step failed.
    """
    files = DemoFiles(folder)
    data = load_data("digits")
    # The first call of a new cross compiler builds its C library, half a minute that training can hide.
    with ThreadPoolExecutor(max_workers=1) as background:
        tools = background.submit(_prepare_tools)
        on_step("training a float network on handwritten digits")
        train_config = TrainConfig(epochs=20, learning_rate=0.1, batch_size=64, seed=seed, threads=1)
        trained = train_network("digits", data, train_config, files.float_checkpoint, restart=True)
        on_step("quantizing it by DGMS to 4 bits and fine-tuning")
        config = DgmsConfig(bits=4)
        fine_tuning = TrainConfig(epochs=10, learning_rate=0.001, batch_size=64, seed=seed, threads=1)
        quantized = quantize_network("digits", data, files.float_checkpoint, config, fine_tuning, files.checkpoint,
                                     seed=seed, restart=True)  # fmt: skip
        on_step("exporting both networks to ONNX")
        for checkpoint in (files.float_checkpoint, files.checkpoint):
            export_checkpoint(checkpoint, checkpoint.with_suffix(".onnx"))
        on_step("compiling for aarch64" if tools.done() else "building the cross compiler's C library")
        tools.result()
    bundles = {
        "float32": compile_model(files.float_checkpoint.with_suffix(".onnx"), folder / "bundle-float",
                                 target="cortex-a76"),
        "DGMS, 4 bits": compile_model(files.checkpoint.with_suffix(".onnx"), folder / "bundle", target="cortex-a76"),
    }  # fmt: skip
    bundle = bundles["DGMS, 4 bits"]
    images, labels = data.normalize(data.test_images[:]), data.test_labels
    on_step(f"running all {len(labels)} test images under QEMU")
    reference = run_reference(bundle, images)
    outputs = run_bundle(bundle, images, cpu="cortex-a76", jobs=2)
    verified = compare(bundle, reference, outputs, labels, read_environment("cortex-a76"))
    on_step("counting instructions")
    counts = tuple(
        Count(name, cpu, 1, bench(compiled.path, cpu=cpu, repeat=1).inferences[0].instructions)
        for cpu in CPUS
        for name, compiled in bundles.items()
    )
    predicted = outputs.argmax(axis=1)
    confusion = np.zeros((len(data.classes),) * 2, np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    correct = [round(accuracy * len(labels) / 100) for accuracy in (trained.test_accuracy, quantized.test_accuracy)]
    correct += [int((reference.argmax(axis=1) == labels).sum()), int((predicted == labels).sum())]
    summary = DemoSummary(
        title="Sparrow demo: handwritten digits",
        subtitle=f"A residual network, trained on {len(data.train_labels):,} images of 8x8 pixels, quantized by DGMS "
        "to 4-bit shared weights with int8 activations, and compiled for aarch64.",
        stages=_stages(files, bundle, correct, len(labels)),
        counts=counts,
        layers=_layers(files, config),
        examples=_examples(data, predicted),
        classes=data.classes,
        confusion=confusion,
        facts=(
            ("Sparrow", f"{version('sparrow-mobile')} {verified.environment.commit}".strip()),
            ("QEMU", verified.environment.qemu_version),
            ("C compiler", str(bundle.manifest["c_compiler"])),
            ("TVM", version("apache-tvm")),
            ("PyTorch", torch.__version__),
            ("ONNX Runtime", version("onnxruntime")),
            ("seed", str(seed)),
            ("command", "sparrow demo"),
        ),
    )
    return summary, verified


def _prepare_tools() -> None:
    """Build what every bundle shares, and let the cross compiler build its C libraries by linking an empty program."""
    toolchain = find_toolchain()
    objects = runtime_objects(toolchain)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
        toolchain.compile(folder / "empty.c", folder / "empty.o")
        toolchain.link_executable([folder / "empty.o", *objects], folder / "empty")
        toolchain.link_shared(objects, folder / "empty.so", exports=["sparrow_*"])
    if (qemu := find_qemu()).plugins:  # without, counting reads QEMU's log and needs none
        build_plugin(qemu)


def _stages(files: DemoFiles, bundle: Bundle, correct: list[int], images: int) -> tuple[Stage, ...]:
    layers = bundle.manifest["layers"]
    zeros = sum(layer["zero_share"] * layer["parameters"] for layer in layers) / sum(x["parameters"] for x in layers)
    float_onnx, dgms_onnx = files.float_checkpoint.with_suffix(".onnx"), files.checkpoint.with_suffix(".onnx")
    return (
        Stage("float32", "PyTorch", correct[0], images, float_onnx.stat().st_size, "ONNX file", 0.0),
        Stage("DGMS, 4 bits", "PyTorch", correct[1], images, files.checkpoint.stat().st_size, "checkpoint", zeros),
        Stage("DGMS, 4 bits", "ONNX Runtime", correct[2], images, dgms_onnx.stat().st_size, "ONNX file", zeros),
        Stage("DGMS, 4 bits", "bundle under QEMU", correct[3], images, bundle.manifest["weights_bytes"],
              "packed weights", zeros),
    )  # fmt: skip


def _layers(files: DemoFiles, config: QuantizeConfig) -> tuple[Layer, ...]:
    before, _ = load_network(files.float_checkpoint)
    after, _ = load_network(files.checkpoint)
    floats = {name: module.weight.detach().numpy().copy() for name, module in before.named_modules()
              if isinstance(module, nn.Conv2d | nn.Linear)}  # fmt: skip
    initial, final = quantized_layers(quantize_(before, config).eval()), quantized_layers(after)
    layers = []
    for report in layer_report(after):
        counts, edges = np.histogram(floats[report.name], bins=HISTOGRAM_BINS)
        first, codebook, shares = (), (), ()
        if isinstance(sharing := final[report.name][1], MixtureSharing):
            start = initial[report.name][1]
            assert isinstance(start, MixtureSharing)
            first = tuple(start.codebook().tolist())
            indices = sharing.indices(original_weight(final[report.name][0])).numpy()
            codebook = tuple(sharing.codebook().tolist())
            shares = tuple((np.bincount(indices.reshape(-1), minlength=len(codebook)) / indices.size).tolist())
        layers.append(
            Layer(report.name, int(np.prod(report.shape)), report.bits, report.zeros, tuple(edges.tolist()),
                  tuple(counts.tolist()), first, codebook, shares)
        )  # fmt: skip
    return tuple(layers)


def _examples(data: ImageData, predicted: NDArray[np.int64]) -> tuple[Example, ...]:
    """Every image that the bundle got wrong, then others, up to a page full."""
    wrong = np.flatnonzero(predicted != data.test_labels)
    right = np.flatnonzero(predicted == data.test_labels)
    chosen = np.concatenate([wrong, right])[:EXAMPLES]
    pixels = data.test_images[chosen][:, 0].astype(np.int64) * 255 // data.white
    return tuple(
        Example(image.astype(np.uint8), data.classes[data.test_labels[index]], data.classes[predicted[index]])
        for index, image in zip(chosen, pixels, strict=True)
    )

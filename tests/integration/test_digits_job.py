"""The commands of the main job, one after another, on the bundled digits, as a user types them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.tvm, pytest.mark.qemu, pytest.mark.slow]

SPARROW = [sys.executable, "-c", "from sparrow.deploy.cli import main; main()"]


def sparrow(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [*SPARROW, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.pt, q.pt, q.onnx and the bundle q/."""
    folder = tmp_path_factory.mktemp("job")
    sparrow("train", "--model", "digits", "--data", "digits", "--epochs", 12, "--batch-size", 64, "--threads", 1,
            "-o", "digits.pt", cwd=folder)  # fmt: skip
    sparrow("quantize", "--model", "digits", "--checkpoint", "digits.pt", "--method", "dgms", "--bits", 4, "--data",
            "digits", "--epochs", 2, "--threads", 1, "-o", "q.pt", cwd=folder)  # fmt: skip
    sparrow("export", "q.pt", "-o", "q.onnx", cwd=folder)
    sparrow("compile", "q.onnx", "--target", "cortex-a76", "-o", "q", cwd=folder)
    return folder


def test_no_step_leaves_anything_but_its_result(job):
    assert sorted(path.name for path in job.iterdir()) == ["digits.pt", "q", "q.onnx", "q.pt"]


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "armv8.6-a+i8mm"])
def test_the_bundle_classifies_like_onnx_runtime_on_every_core(job, cpu):
    document = json.loads(sparrow("verify", "q", "--cpu", cpu, "--images", "all", "--json", cwd=job).stdout)
    assert document["images"] == 360
    assert document["ok"] and document["agreement"] >= 0.99
    assert document["bundle_top1"] >= 0.96
    assert abs(document["bundle_top1"] - document["reference_top1"]) <= 1 / 360


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        ("--bits 2", ["qs8c", "cb2t", "cb2t", "cb2t", "qs8c"]),
        ("--bits 3 --layer-8bit linear", ["cb4t", "cb4t", "cb4t", "cb4t", "qs8c"]),
        ("--method int8", ["qs8c"] * 5),
        ("--activations float", ["f32"] * 5),
    ],
)
def test_every_precision_reaches_the_bundle(job, tmp_path, options, formats):
    sparrow("quantize", "--model", "digits", "--checkpoint", "digits.pt", "--data", "digits", "--epochs", 0,
            *options.split(), "-o", tmp_path / "x.pt", cwd=job)  # fmt: skip
    sparrow("export", "x.pt", "-o", "x.onnx", cwd=tmp_path)
    document = json.loads(sparrow("compile", "x.onnx", "--target", "armv8-a", "-o", "x", "--json", cwd=tmp_path).stdout)
    assert [layer["weight_format"] for layer in document["layers"]] == formats
    assert json.loads(sparrow("verify", "x", "--images", "128", "--json", cwd=tmp_path).stdout)["agreement"] >= 0.99


def test_counts_repeat_exactly_and_dotprod_needs_fewer(job):
    def count(cpu: str) -> float:
        document = json.loads(sparrow("bench", "q", "--cpu", cpu, "--json", cwd=job).stdout)
        return document["inferences"][0]["instructions"]

    assert count("cortex-a53") == count("cortex-a53")
    assert count("cortex-a76") < 0.7 * count("cortex-a53")


def test_the_file_stores_four_bits_a_weight(job):
    document = json.loads(sparrow("inspect", "q.onnx", "--json", cwd=job).stdout)
    assert [layer["bits"] for layer in document["layers"]] == [8, 4, 4, 4, 8]
    assert all(layer["distinct_values"] <= 16 for layer in document["layers"] if layer["bits"] == 4)
    assert document["bytes"] < 24_000
    assert json.loads(sparrow("inspect", "q", "--json", cwd=job).stdout)["name"] == "q"


def test_a_wrong_bundle_exits_with_3(job, tmp_path):
    """A bundle whose reference is another network: intact by its hashes, wrong by its results."""
    from sparrow.deploy.bundle import file_sha256

    other = tmp_path / "other"
    subprocess.run(["cp", "-r", job / "q", other], check=True)
    sparrow("quantize", "--model", "digits", "--checkpoint", "digits.pt", "--bits", 2, "--data", "digits", "--epochs",
            0, "-o", tmp_path / "two.pt", cwd=job)  # fmt: skip
    sparrow("export", tmp_path / "two.pt", "-o", other / "model.onnx", cwd=job)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = file_sha256(other / "model.onnx")
    (other / "manifest.json").write_text(json.dumps(manifest))
    result = sparrow("verify", other, "--images", "all", cwd=job, code=3)
    assert "differs from ONNX Runtime" in result.stderr


@pytest.mark.parametrize(
    ("command", "sign"),
    [
        ("train --model digits --data digits --epochs 4000 --threads 1 -o out/r.pt", "epoch 2"),
        ("quantize --model digits --checkpoint digits.pt --data digits --epochs 4000 -o out/r.pt", "epoch 2"),
        ("compile q.onnx --target cortex-a53 -o out/r", "compile: legalize"),
        ("verify q --images all -o out/r.json", "verify: ONNX Runtime 64/"),
        ("bench q --repeat 100000 -o out/r.json", "bench: 1 thread"),
        ("export q.pt -o out/r.onnx", "exporting"),
    ],
    ids=["train", "quantize", "compile", "verify", "bench", "export"],
)
def test_interruption_leaves_no_half_written_result(job, command, sign):
    """Ctrl-C in the middle: a resumable training keeps its .resume file, nothing else stays behind."""
    out = job / "out"
    out.mkdir()
    try:
        # A shell starts what it runs in the background with the signal ignored, and children inherit that.
        process = subprocess.Popen([*SPARROW, *command.split()], cwd=job, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
        for line in process.stderr:
            if line.startswith(sign):
                break
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1, stderr
        assert "Traceback" not in stderr and "interrupted" in stderr
        assert {path.name for path in out.iterdir()} <= {"r.pt.resume"}
    finally:
        subprocess.run(["rm", "-rf", out], check=True)


def test_a_killed_training_goes_on_and_ends_like_an_uninterrupted_one(job, tmp_path):
    import torch

    def train(output: str) -> list[str]:
        return ["train", "--model", "digits", "--data", "digits", "--epochs", "6", "--threads", "1", "-o", output]

    sparrow(*train("whole.pt"), cwd=tmp_path)
    process = subprocess.Popen([*SPARROW, *train("parts.pt")], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("epoch 2"):
            break
    process.kill()
    process.wait()
    process.stderr.close()
    assert (tmp_path / "parts.pt.resume").exists()
    result = sparrow(*train("parts.pt"), cwd=tmp_path)
    assert "resumed" in result.stdout
    whole, parts = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    assert all(torch.equal(whole["state_dict"][key], parts["state_dict"][key]) for key in whole["state_dict"])

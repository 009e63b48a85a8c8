"""The C interface and the command-line runner of a bundle, under QEMU."""

import json
import subprocess
from pathlib import Path

import pytest

from sparrow.benchmarks.runners.qemu import run
from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.formats import MAGIC, VERSION

pytestmark = [pytest.mark.tvm, pytest.mark.qemu]

IMAGE_BYTES = 3 * 16 * 16 * 4


def qemu(*command: object, cpu: str = "cortex-a53") -> subprocess.CompletedProcess[str]:
    text = [str(part) for part in command]
    command = ["qemu-aarch64", "-cpu", cpu, *text]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def run_bundle(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return qemu(folder / "sparrow_run", *arguments)


@pytest.fixture(scope="module")
def api_output(residual_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Lines of api_check by what they begin with."""
    folder = tmp_path_factory.mktemp("api")
    toolchain = find_toolchain()
    toolchain.compile(Path(__file__).with_name("api_check.c"), folder / "check.o", flags=[f"-I{residual_bundle}"])
    toolchain.link_executable([folder / "check.o", residual_bundle / "libnetwork.a"], folder / "check")
    result = qemu(folder / "check")
    assert result.returncode == 0, result.stdout + result.stderr
    lines: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        key, _, rest = line.partition(": ")
        lines.setdefault(key, []).append(rest)
    assert "done" in lines
    return lines


def test_creation_refuses_what_cannot_work(api_output):
    assert api_output["null program"] == ["1"]
    assert api_output["no threads"] == ["1 network: threads: got 0, expected 1 to 64"]
    assert api_output["too many threads"] == ["1"]


def test_inputs_and_outputs_are_described(api_output):
    assert api_output["input"] == [f"input 4 {IMAGE_BYTES}, output: logits 40, more: 0"]


def test_buffers_of_the_wrong_size_are_refused_with_both_sizes(api_output):
    assert api_output["short input"] == [f"1 input input: got {IMAGE_BYTES - 4} bytes, expected {IMAGE_BYTES}"]
    assert api_output["null data"] == ["1"]
    assert api_output["no outputs"] == ["1 outputs: got 0, expected 1"]


def test_results_depend_on_neither_threads_nor_alignment_nor_instance(api_output):
    assert api_output["run"] == ["0", "0", "0 "]
    assert api_output["equal"] == ["1", "1"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--input"], ["--input", "x"], ["--bogus", "1"], ["--input", "a", "--output", "b", "--threads", "zero"],
     ["--input", "a", "--output", "b", "--repeat", "0"]],
)  # fmt: skip
def test_usage_errors_exit_with_2(residual_bundle, arguments):
    result = run_bundle(residual_bundle, *arguments)
    assert result.returncode == 2
    assert "usage: sparrow_run" in result.stderr


@pytest.mark.parametrize(
    ("size", "message"), [(0, "the file is empty"), (IMAGE_BYTES + 5, "input 1 has 5 bytes, expected 3072")]
)
def test_input_files_of_the_wrong_size_are_refused(residual_bundle, tmp_path, size, message):
    (tmp_path / "in.bin").write_bytes(bytes(size))
    result = run_bundle(residual_bundle, "--input", tmp_path / "in.bin", "--output", tmp_path / "out.bin")
    assert (result.returncode, message in result.stderr) == (1, True)


def test_missing_input_and_unwritable_output_are_named(residual_bundle, tmp_path):
    result = run_bundle(residual_bundle, "--input", tmp_path / "none", "--output", tmp_path / "out.bin")
    assert result.returncode == 1 and "none: No such file" in result.stderr
    (tmp_path / "in.bin").write_bytes(bytes(IMAGE_BYTES))
    result = run_bundle(residual_bundle, "--input", tmp_path / "in.bin", "--output", tmp_path / "no" / "out.bin")
    assert result.returncode == 1 and "No such file" in result.stderr


def test_damaged_weights_are_refused_on_the_device_and_the_hash_named(residual_bundle, tmp_path):
    manifest = load_bundle(residual_bundle).manifest
    program = bytearray((residual_bundle / "sparrow_run").read_bytes())
    weights = program.find(MAGIC + VERSION.to_bytes(2, "little"))  # of the first packed tensor
    program[weights + manifest["weights_bytes"] // 2] ^= 0x10
    damaged = tmp_path / "sparrow_run"
    damaged.write_bytes(program)
    damaged.chmod(0o755)
    (tmp_path / "in.bin").write_bytes(bytes(IMAGE_BYTES))
    result = run_bundle(tmp_path, "--input", tmp_path / "in.bin", "--output", tmp_path / "out.bin")
    assert result.returncode == 1
    assert "the weights are damaged (expected SHA-256 " in result.stderr
    assert not (tmp_path / "out.bin").exists()


def test_describe_prints_json(residual_bundle):
    document = json.loads(run_bundle(residual_bundle, "--describe").stdout)
    assert document["inputs"] == [{"name": "input", "type": "float32", "shape": [1, 3, 16, 16], "bytes": IMAGE_BYTES}]
    assert document["steps"] == load_bundle(residual_bundle).manifest["steps"]


def test_shared_library_exports_the_interface_and_nothing_else(residual_bundle):
    content = (residual_bundle / "libnetwork.so").read_bytes()
    for symbol in (b"sparrow_create", b"sparrow_run", b"network_program"):
        assert symbol in content
    for symbol in (b"__tvm_ffi_network", b"spw_conv2d_run", b"thread_pool_run"):
        assert symbol not in content


@pytest.mark.parametrize("threads", [1, 3])
def test_every_step_is_a_section_and_layers_take_tasks(residual_bundle, tmp_path, threads):
    bundle = load_bundle(residual_bundle)
    (tmp_path / "in.bin").write_bytes(bytes(IMAGE_BYTES))
    arguments = ["--input", str(tmp_path / "in.bin"), "--output", str(tmp_path / "out.bin"),
                 "--threads", str(threads), "--warmup", "1", "--repeat", "2"]  # fmt: skip
    counts = run(bundle.runner, arguments, cpu="cortex-a53", count=True).counts
    before, *steps = counts.sections
    assert (before.tasks, len(counts.regions), len(steps)) == (0, 2, len(bundle.manifest["steps"]))
    ours = [*(layer["name"] for layer in bundle.manifest["layers"]), "quantize_qa8_f32", "max_pool_qa8"]
    assert len(ours) > 2
    for name, section in zip(bundle.manifest["steps"], steps, strict=True):
        assert (section.tasks > 0) == (name in ours)
        assert section.tasks % 2 == 0 and len(section.instructions) == threads and section.instructions[0] > 0
    assert sum(sum(section.instructions) for section in counts.sections) == sum(map(sum, counts.regions))

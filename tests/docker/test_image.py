"""The toolchain image, built and run in a real engine. Minutes long: only with SPARROW_TEST_DOCKER=1."""

import json
import os
import re
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from sparrow.deploy.bundle import MANIFEST, file_sha256
from sparrow.deploy.compiler import compile_model
from sparrow.kernels.files import cache_dir

from ..deploy.networks import residual_network
from .engine import DOCKERFILE, ROOT, Engine, build, make_base_image, running_engine, torch_index

TAG = "sparrow:test"
MOST_BYTES = 2.5e9
CALLER = 12345  # neither root nor the image's own user


def test_the_dockerfile_is_clean():
    subprocess.run([Path(sysconfig.get_path("scripts")) / "hadolint", DOCKERFILE], check=True)


def test_the_context_holds_what_the_wheel_is_made_of():
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    needed = {"README.md", "constraints.txt", "pyproject.toml", "setup.py", "docker/entrypoint.sh",
              "benchmarks", "deploy", "kernels", "models", "quantize"}  # fmt: skip
    assert {rule[1:] for rule in rules if rule.startswith("!")} == needed
    assert all((ROOT / name).exists() for name in needed)
    assert os.access(ROOT / "docker" / "entrypoint.sh", os.X_OK)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    if not os.environ.get("SPARROW_TEST_DOCKER"):
        pytest.skip("NOT TESTED: the toolchain image, which takes many minutes to build. Run: make test-docker")
    with running_engine(cache_dir() / "test-docker") as found:
        yield found


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine, after building the image twice."""
    folder = tmp_path_factory.mktemp("docker")
    arguments: list[str] = []
    if not engine.private:
        build(engine, TAG)
        yield engine
        return
    make_base_image(engine, folder)
    with torch_index(folder) as index:
        arguments = ["--build-arg", f"PYTORCH_INDEX={index}"]
        started = time.monotonic()
        build(engine, TAG, arguments)
        print(f"built in {time.monotonic() - started:.0f} s")
        again = build(engine, TAG, arguments)
        steps = re.findall(r"^#(\d+) \[.*\] (?:RUN|COPY) ", again, re.M)
        assert {number for number in steps if not re.search(rf"^#{number} CACHED$", again, re.M)} == set()
    yield engine


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder of the caller's, with a network in it."""
    folder = tmp_path / "of the caller"
    folder.mkdir()
    onnx.save(residual_network(), folder / "network.onnx")
    if os.geteuid() == 0:
        for path in (folder, folder / "network.onnx"):
            os.chown(path, CALLER, CALLER)
    return folder


def sparrow(engine: Engine, workspace: Path, *arguments: str, options: tuple[str, ...] = ()) -> str:
    return engine.docker("run", "--rm", "--network", "none", *options, "-v", f"{workspace}:/workspace", TAG,
                         *arguments).stdout  # fmt: skip


@pytest.mark.docker
def test_it_is_small_and_knows_everything(image, workspace):
    size = int(image.docker("image", "inspect", "-f", "{{.Size}}", TAG).stdout)
    print(f"{size / 1e9:.2f} GB")
    assert size < MOST_BYTES
    findings = json.loads(sparrow(image, workspace, "doctor", "--json"))
    assert {finding["name"] for finding in findings if not finding["ok"]} <= {
        "docker", "Android NDK", "project file", "qemu-system-aarch64",
    }  # fmt: skip


@pytest.mark.docker
def test_the_bundle_is_the_hosts_and_belongs_to_the_caller(image, workspace, tmp_path):
    host = compile_model(workspace / "network.onnx", tmp_path / "host", target="cortex-a76").path
    sparrow(image, workspace, "compile", "network.onnx", "--target", "cortex-a76", "-o", "out/")
    ours = {path.name: file_sha256(path) for path in host.iterdir()}
    assert {path.name: file_sha256(path) for path in (workspace / "out").iterdir()} == ours
    assert MANIFEST in ours
    owner = workspace.stat()
    for path in workspace.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (owner.st_uid, owner.st_gid), path
    assert "ok:" in sparrow(image, workspace, "verify", "out/", "--runner", "qemu")
    assert "cycles" in sparrow(image, workspace, "bench", "out/", "--predict", "cortex-a76")


@pytest.mark.docker
def test_any_user_can_be_named(image, workspace):
    workspace.chmod(0o777)
    sparrow(image, workspace, "inspect", "network.onnx", options=("--user", "54321:54321"))
    sparrow(image, workspace, "compile", "network.onnx", "--target", "armv8-a", "-o", "other/",
            options=("--user", "54321:54321"))  # fmt: skip
    assert (workspace / "other").stat().st_uid == 54321


@pytest.mark.docker
def test_nothing_runs_as_root(image, workspace, tmp_path):
    probe = tmp_path / "sparrow"
    probe.write_text("#!/bin/sh\nid -u; id -G; grep CapEff /proc/self/status; whoami\n")
    probe.chmod(0o755)
    owner = workspace.stat()
    if owner.st_uid == 0:
        pytest.skip("the folder is root's")
    printed = sparrow(image, workspace, options=("-v", f"{probe}:/opt/sparrow/bin/sparrow:ro")).split()
    assert printed == [str(owner.st_uid), str(owner.st_gid), "CapEff:", "0000000000000000", "caller"]


@pytest.mark.docker
def test_errors_keep_their_codes(image, workspace):
    run = ("run", "--rm", "--network", "none", "-v", f"{workspace}:/workspace", TAG)
    failed = image.docker(*run, "compile", "no.onnx", "--target", "cortex-a76", "-o", "out", check=False)
    assert failed.returncode == 1 and "no.onnx" in failed.stderr
    usage = image.docker(*run, "compyle", check=False)
    assert usage.returncode == 2 and "did you mean 'compile'" in usage.stderr

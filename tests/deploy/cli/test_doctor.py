"""``sparrow doctor``: it finds what is missing and has a command for it."""

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparrow.deploy import doctor
from sparrow.deploy.cli.doctor import command


def check(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[int, dict[str, dict[str, str]]]:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(command, ["--json"], standalone_mode=False, catch_exceptions=False)
    return result.return_value, {finding["name"]: finding for finding in json.loads(result.stdout)}


def test_each_missing_piece_has_a_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    code, found = check(monkeypatch, tmp_path)
    assert code == 1
    missing = {name: finding for name, finding in found.items() if not finding["ok"]}
    assert {"qemu-aarch64", "adb", "ssh", "docker", "Android NDK", "instruction counter"} <= set(missing)
    assert all(finding["fix"] for finding in missing.values())
    assert "apt-get install qemu-user" in missing["qemu-aarch64"]["fix"]
    assert missing["qemu-aarch64"]["required"] and not missing["adb"]["required"]


def test_a_package_that_is_missing_or_of_a_wrong_version(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnx":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "apache-tvm" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.name: finding for finding in doctor._packages()}
    assert not found["onnx"].ok and "pip install 'onnx>=" in found["onnx"].fix
    assert found["apache-tvm"].detail.startswith("0.1, expected ") and "pip install 'apache-tvm" in found[
        "apache-tvm"].fix  # fmt: skip
    assert found["click"].ok and not found["click"].fix
    assert "pytest" not in found


def test_an_engine_that_does_not_run(monkeypatch, tmp_path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'engine '\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    finding = doctor._docker()
    assert (finding.ok, finding.detail) == (False, "Cannot connect to the Docker daemon")
    assert "systemctl start docker" in finding.fix


def test_the_project_file_in_use_is_named_and_checked(monkeypatch, tmp_path):
    (tmp_path / "sparrow.yaml").write_text("inspect: {json: true}")
    _, found = check(monkeypatch, tmp_path)
    assert found["project file"]["ok"]
    assert found["project file"]["detail"] == f"{tmp_path / 'sparrow.yaml'}: inspect"
    (tmp_path / "sparrow.yaml").write_text("inspect: {jsn: true}")
    code, found = check(monkeypatch, tmp_path)
    assert (code, found["project file"]["ok"]) == (1, False)
    assert "did you mean 'json'" in found["project file"]["fix"]


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing")
def test_what_is_here_is_found(monkeypatch, tmp_path):
    _, found = check(monkeypatch, tmp_path)
    assert found["qemu-aarch64"]["ok"] and "version" in found["qemu-aarch64"]["detail"]
    assert found["C compiler for aarch64"]["ok"]
    assert found["instruction counter"]["detail"].startswith(("plugin", "QEMU"))

"""A Docker engine for one test run: the machine's own, or Debian's packages unpacked and started on a socket."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
PACKAGES = ("containerd", "docker.io", "mmdebstrap", "runc")
# What Debian's slim images leave out.
NOT_IN_SLIM = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# A build argument is part of a layer's identity: with a port that changes, nothing would come out of the cache.
INDEX_PORT = 47121


@dataclass(frozen=True)
class Engine:
    """An engine that answers.

    Attributes:
        environment: Environment in which ``docker`` talks to it.
        private: Whether it was started here: images then cannot be had from a registry.
    """

    environment: dict[str, str]
    private: bool

    def docker(self, *arguments: object, timeout: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the client."""
        result = subprocess.run(["docker", *map(str, arguments)], env=self.environment, capture_output=True, text=True,
                                timeout=timeout, check=False)  # fmt: skip
        if check:
            assert result.returncode == 0, f"docker {arguments}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
        return result


@contextmanager
def running_engine(cache: Path) -> Iterator[Engine]:
    """Give the machine's engine, or start one that keeps its images under ``cache``. Skips where neither can be had."""
    if shutil.which("docker"):
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        engine = Engine(environment, private=False)
        if engine.docker("version", check=False).returncode == 0:
            yield engine
            return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("NOT TESTED: the toolchain image. No Docker engine answers, and starting one takes root on Debian")
    programs = unpacked_programs(cache)
    environment = {
        **os.environ,
        "DOCKER_BUILDKIT": "1",
        "DOCKER_HOST": f"unix://{cache}/docker.sock",
        "PATH": f"{programs}/usr/bin:{programs}/usr/sbin:{os.environ['PATH']}",
        "PERL5LIB": f"{programs}/usr/share/perl5",
    }
    group = f"sparrow-test-{os.getpid()}"
    command = ["unshare", "-m", "--propagation", "private", "dockerd", "--data-root", cache / "data", "--exec-root",
               cache / "exec", "-p", cache / "docker.pid", "-H", environment["DOCKER_HOST"], "--iptables=false",
               "--ip6tables=false", "--ip-forward=false", "--bridge=none", "--storage-driver", "overlay2",
               "--cgroup-parent", group]  # fmt: skip
    engine = Engine(environment, private=True)
    with (cache / "log").open("w") as log:
        daemon = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        for _ in range(300):
            if engine.docker("version", check=False).returncode == 0:
                break
            if daemon.poll() is not None:
                pytest.skip(f"NOT TESTED: the toolchain image. dockerd does not start here: see {cache / 'log'}")
            time.sleep(0.2)
        yield engine
    finally:
        daemon.terminate()
        daemon.wait(60)
        for folder in Path("/sys/fs/cgroup").glob(f"**/{group}"):
            with suppress(OSError):  # a container that was cut short is still ending
                folder.rmdir()


def unpacked_programs(cache: Path) -> Path:
    """Debian's packages of an engine, unpacked into a folder and not installed."""
    folder = cache / "programs"
    if not folder.is_dir():
        packages = cache / "packages"
        packages.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True, timeout=300)
        found = subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=packages, check=False,
                               capture_output=True, text=True, timeout=600)  # fmt: skip
        if found.returncode:
            pytest.skip(f"NOT TESTED: the toolchain image. Debian has no engine here: {found.stderr.strip()[-300:]}")
        fresh = cache / "programs.new"
        shutil.rmtree(fresh, ignore_errors=True)
        for package in packages.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, fresh], check=True)
        fresh.rename(folder)
    return folder


def base_image() -> str:
    """Name of the image that the Dockerfile builds on."""
    return re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.M)[1]


def make_base_image(engine: Engine, folder: Path) -> None:
    """Make a Debian under the name that the Dockerfile builds on, unless the engine has it.

    It trusts what this machine trusts and asks pip's index of this machine: settings that belong to the place where
    the image is built, and to no Dockerfile.
    """
    if engine.docker("image", "inspect", base_image(), check=False).returncode == 0:
        return
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in NOT_IN_SLIM]
    subprocess.run(["mmdebstrap", "--variant=minbase", "--skip=chroot/mount/proc", *excludes, "bookworm",
                    folder / "base.tar"], env=engine.environment, check=True, capture_output=True,
                   timeout=1200)  # fmt: skip
    engine.docker("import", folder / "base.tar", "sparrow-test-debian")
    context = folder / "base"
    context.mkdir()
    shutil.copy(CERTIFICATES, context / "machine.crt")
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    kept = re.findall(r"^\S+\.((?:extra-)?index-url|trusted-host)='(https?:[^']*|[^/:']+)'$", listed, re.M)
    settings = [f"{key} = {value}" for key, value in kept]
    (context / "pip.conf").write_text("\n".join(["[global]", "cert = /etc/ssl/machine.crt", *settings, ""]))
    (context / "Dockerfile").write_text(
        "FROM sparrow-test-debian\nCOPY machine.crt /etc/ssl/machine.crt\nCOPY pip.conf /etc/pip.conf\n"
    )
    engine.docker("build", "-q", "-t", base_image(), context)


@contextmanager
def torch_index(folder: Path) -> Iterator[str]:
    """Address of an index with the one torch that this machine's pip gets for the image's Python."""
    version = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
    wheels = folder / "index" / "torch"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version",
               "3.11", "-d", wheels, f"torch=={version}"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=1200)
    names = sorted(path.name for path in wheels.iterdir())
    (wheels / "index.html").write_text("\n".join(f'<a href="{name}">{name}</a>' for name in names))
    handler = functools.partial(_QuietHandler, directory=str(folder / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", INDEX_PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{INDEX_PORT}/"
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def build(engine: Engine, tag: str, arguments: Sequence[object] = ()) -> str:
    """Build the toolchain image; returns the engine's log."""
    network = ["--network=host"] if engine.private else []  # it has no bridge
    result = engine.docker("build", *network, "--progress=plain", *arguments, "-f", DOCKERFILE, "-t", tag, ROOT,
                           timeout=7200)  # fmt: skip
    return result.stdout + result.stderr

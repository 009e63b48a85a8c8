"""Hosts that are not known, do not let in, or go away, with the real ssh and sshd; and a measurement end to end."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparrow.benchmarks.measure import measure
from sparrow.benchmarks.runners.ssh import SshDevice
from sparrow.kernels.errors import SparrowError

from .conftest import Board
from .runner_bundle import build_bundle


def open_ssh(board: Board) -> SshDevice:
    return SshDevice(board.host, board.key)


@pytest.mark.qemu
def test_a_board_is_measured_from_end_to_end(board: Board, tmp_path: Path) -> None:
    device = open_ssh(board)
    result = measure(build_bundle(tmp_path), device, affinity="all", repeat=12, min_seconds=0)
    assert result.outputs.ok and result.outputs.exactly_equal == 1 and result.times.count == 12
    assert (result.device.runner, result.cpus) == ("ssh", (max(os.sched_getaffinity(0)),))
    stored = [path.relative_to(board.home) for path in (board.home / ".cache").rglob("*") if path.is_file()]
    assert sorted(path.name for path in stored) == ["sparrow_run", "sparrow_run.sha256"]
    device.remove()
    assert list((board.home / ".cache").iterdir()) == []


@pytest.mark.qemu
def test_a_host_whose_key_is_not_known_is_not_trusted(board: Board) -> None:
    known = board.known_hosts.read_text()
    board.known_hosts.write_text("")
    with pytest.raises(SparrowError, match=r"key of the host is not known(?s:.*)compare the fingerprint: ssh -p"):
        open_ssh(board).describe()
    assert board.known_hosts.read_text() == ""
    # Another key than last time: that of the user will do.
    board.known_hosts.write_text(f"{known.split()[0]} {board.key.with_suffix('.pub').read_text()}")
    with pytest.raises(SparrowError, match=r"the host has another key than last time\n(?s:.*)find out why"):
        open_ssh(board).describe()


@pytest.mark.qemu
def test_a_key_that_the_host_does_not_take(board: Board, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    device = SshDevice(board.host, other)
    with pytest.raises(SparrowError, match=r"takes neither this user nor the keys(?s:.*)ssh-copy-id -p") as error:
        device.describe()
    assert str(other) in error.value.next_step
    board.key.chmod(0o644)
    with pytest.raises(SparrowError, match=r"others may read the private key\n(?s:.*)chmod 600"):
        open_ssh(board).describe()


@pytest.mark.qemu
def test_a_host_that_goes_away_in_the_middle_of_a_run(
    board: Board, probe: Path, assert_gone: Callable[[Path], None]
) -> None:
    device = open_ssh(board)
    name = f"ssh-probe-{os.getpid()}"
    device.push({name: probe})
    timer = threading.Timer(1.5, board.kill)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(SparrowError, match=f"(went away before it could|could not) run {name}|nothing listens there"):
        device.run(name, ["hang"], timeout=60)
    timer.join()
    assert time.monotonic() - begin < 30
    assert_gone(Path(name))
    with pytest.raises(SparrowError, match=r"nothing listens there\n(?s:.*)that sshd runs on the host"):
        device.describe()


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=x", "me@-x", "-l@host", "a b", "host:port", "user@", "host:22:23", "[::1", "a@b@c"]
)
def test_hosts_that_are_none(host):
    with pytest.raises(SparrowError, match=r"expected: \[user@\]host\[:port\]"):
        SshDevice(host)


@pytest.mark.parametrize(
    ("host", "end"),
    [("board", ["board"]), ("pi@10.0.0.2:2222", ["-p", "2222", "pi@10.0.0.2"]), ("[::1]:22", ["-p", "22", "::1"]),
     ("me@[fe80::1%eth0]", ["me@fe80::1%eth0"])],
)  # fmt: skip
def test_hosts_become_arguments_of_ssh(host, end):
    assert SshDevice(host)._shell_command("true")[-len(end) - 1 : -1] == end


@pytest.mark.parametrize(
    ("said", "message"),
    [("cat: write error: No space left on device", "the device is full"),
     ("mkdir: can't create directory '.cache': Read-only file system", "storage is read-only")],
)  # fmt: skip
def test_a_board_that_cannot_be_written(said, message):
    with pytest.raises(SparrowError, match=f"ssh to board: .*{message}\n(?s:.*)next: "):
        SshDevice("board")._fail("receive a file", said)


def test_a_key_that_is_not_there(tmp_path):
    with pytest.raises(SparrowError, match=r"there is no private key .*none\n.*ssh-keygen"):
        SshDevice("board", tmp_path / "none")

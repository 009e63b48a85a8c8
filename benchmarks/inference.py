"""Runs a bundle once on given inputs, under QEMU or on a device, and gives all its outputs."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.runners import qemu
from sparrow.benchmarks.runners.device import Device
from sparrow.benchmarks.tensors import split_outputs
from sparrow.deploy.bundle import RUNNER, Bundle
from sparrow.kernels.errors import SparrowError

Tensors = Mapping[str, NDArray[Any]]


def infer(
    bundle: Bundle,
    samples: Sequence[Tensors],
    *,
    device: Device | None = None,
    cpu: str | None = None,
    threads: int = 1,
    timeout: float = 600,
) -> list[dict[str, NDArray[Any]]]:
    """Run a bundle on samples, one after another in one process.

    On a device the executable stays, so that the next run sends nothing but inputs; ``device.remove()`` removes it.

    Args:
        bundle: Bundle.
        samples: At least one; arrays by input name, of the shapes and types that the bundle's manifest names.
        device: Where it runs, by default under QEMU.
        cpu: Core or architecture level that QEMU emulates, by default the bundle's target.
        threads: Threads of the bundle.
        timeout: Seconds that the run may take.

    Returns:
        For each sample the outputs by name, of the shapes and types of the manifest.

    Raises:
        SparrowError: A sample does not fit, the device cannot be reached or is of another architecture, or the run
            failed.
    """
    content = b"".join(_encode(bundle, sample) for sample in samples)
    if device is not None:
        device.describe().require_abi()
    with tempfile.TemporaryDirectory(prefix="sparrow-run-") as folder:
        source, target = Path(folder, "input"), Path(folder, "output")
        source.write_bytes(content)
        if device is None:
            result = qemu.run(
                bundle.runner,
                ["--input", str(source), "--output", str(target), "--threads", str(threads)],
                cpu=cpu or bundle.manifest["target"],
                timeout=timeout,
            )
            _require_success(result.exit_code, result.stderr, "under QEMU")
        else:
            _run_on_device(bundle, device, source, target, threads, timeout)
        outputs = split_outputs(bundle, target.read_bytes(), len(samples))
    names = [info["name"] for info in bundle.manifest["outputs"]]
    return [dict(zip(names, row, strict=True)) for row in zip(*outputs, strict=True)]


def _run_on_device(
    bundle: Bundle, device: Device, source: Path, target: Path, threads: int, timeout: float
) -> None:  # fmt: skip
    name = bundle.manifest["name"]
    scratch = f"{name}/run-{token_hex(4)}"
    remote_input, remote_output = f"{scratch}/input", f"{scratch}/output"
    try:
        device.push({f"{name}/{RUNNER}": bundle.runner, remote_input: source})
        arguments = ["--input", remote_input, "--output", remote_output, "--threads", str(threads)]
        result = device.run(f"{name}/{RUNNER}", arguments, timeout=timeout)
        _require_success(result.exit_code, result.stdout + result.stderr, f"on {device.name or 'this machine'}")
        device.pull(remote_output, target)
    finally:
        with suppress(SparrowError):
            device.remove(scratch)


def _require_success(exit_code: int, said: str, where: str) -> None:
    if exit_code:
        raise SparrowError(
            f"{RUNNER} ended with exit code {exit_code} {where}\n{said.strip()[-2000:]}",
            next_step="compile the network again with this version of Sparrow; if it stays, report it",
        )


def _encode(bundle: Bundle, sample: Tensors) -> bytes:
    """The inputs of one sample in the order of the network."""
    parts = []
    for info in bundle.manifest["inputs"]:
        found = sample.get(info["name"])
        wanted = f"{info['dtype']}{info['shape']} for the input {info['name']}"
        if found is None or (found.dtype, list(found.shape)) != (np.dtype(info["dtype"]), info["shape"]):
            got = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise SparrowError(f"a sample has {got}", expected=wanted)
        parts.append(found.tobytes())
    return b"".join(parts)

"""ncnn's benchmark networks, run by ncnn itself under QEMU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparrow.benchmarks.runners.arm_userland import WHEELS, Userland, arm_userland
from sparrow.benchmarks.runners.qemu import Cache, InstructionCounts
from sparrow.deploy.toolchain import find_toolchain, source_key
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_folder, cache_dir

GUEST = Path(__file__).with_name("guest")
NCNN_VERSION = WHEELS["ncnn"]

# A waiting OpenMP thread spins by default: under QEMU, how often depends on this machine, and it is no work.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Network:
    """One network as ncnn describes it, without weights.

    Attributes:
        name: Its name.
        param: ncnn's description.
        width: Width of the input image.
        height: Its height.
        channels: Its channels.
    """

    name: str
    param: Path
    width: int
    height: int
    channels: int


def read_networks(folder: Path) -> dict[str, Network]:
    """Read a folder of networks.

    Args:
        folder: Holds ``NAME.param`` files, and ``inputs.txt`` with lines of a name, width, height and channels.

    Returns:
        The networks that are listed and there, by name.

    Raises:
        SparrowError: The list cannot be read, or nothing that it lists is there.
    """
    listing = folder / "inputs.txt"
    networks, line = {}, ""
    try:
        for line in listing.read_text(encoding="utf-8").splitlines():
            name, width, height, channels = line.split()
            network = Network(name, folder / f"{name}.param", int(width), int(height), int(channels))
            if network.param.exists():
                networks[name] = network
    except OSError as error:
        raise SparrowError(f"cannot read {listing}: {error.strerror}", expected="a folder of ncnn's benchmark networks",
                           next_step="name the folder with --networks") from error  # fmt: skip
    except ValueError as error:
        raise SparrowError(f"{listing} has the line {line!r}", expected="NAME WIDTH HEIGHT CHANNELS") from error
    if not networks:
        raise SparrowError(f"{folder} has no .param file of a network that inputs.txt lists",
                           expected="ncnn's benchmark networks")  # fmt: skip
    return networks


class NcnnRunner:
    """Runs networks by ncnn in an emulated machine and counts one inference, the second one.

    Args:
        on_progress: Called with a text before each download.

    Raises:
        SparrowError: The userland cannot be had, or no cross compiler is there.
    """

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self._userland: Userland = arm_userland(["ncnn", "numpy"], on_progress=on_progress)
        self._marks = _build_marks()

    def count(
        self, network: Network, *, cpu: str, threads: int, caches: Sequence[tuple[Cache, Cache]], timeout: float,
        half: bool = True,
    ) -> InstructionCounts:  # fmt: skip
        """Count one inference; each of its parallel regions is a section.

        Args:
            network: Network to run.
            cpu: Core to emulate and to describe to ncnn, which chooses kernels by it.
            threads: Number of threads.
            caches: Hierarchies of data caches to simulate.
            timeout: Seconds after which it is stopped.
            half: Compute in half precision where the core has it, as ncnn does by default.

        Raises:
            SparrowError: ncnn cannot load or run the network, or QEMU or its plugins are missing.
        """
        numbers = (network.width, network.height, network.channels, threads, int(half))
        arguments = [str(self._marks), str(network.param.absolute()), *map(str, numbers)]
        result = self._userland.run(GUEST / "run_ncnn.py", arguments, cpu=cpu, caches=caches, timeout=timeout,
                                    environment=_ENVIRONMENT)  # fmt: skip
        if result.exit_code or result.counts is None:
            raise SparrowError(f"ncnn {NCNN_VERSION} fails on {network.name}: {result.stderr.strip()[-300:]}",
                               expected="a network of ncnn's benchmark")  # fmt: skip
        return result.counts


def _build_marks() -> Path:
    """Compile the library that marks regions, or take it from the cache."""
    toolchain, source = find_toolchain(), GUEST / "parallel_marks.c"
    folder = cache_dir() / "calibration" / f"parallel_marks-{source_key([source], toolchain.version)}"
    if not folder.exists():
        with atomic_folder(folder, may_replace=lambda path: True) as temporary:
            toolchain.compile(source, temporary / "parallel_marks.o")
            toolchain.link_shared([temporary / "parallel_marks.o"], temporary / "parallel_marks.so",
                                  exports=["GOMP_parallel", "gomp_parallel", "*_region"])  # fmt: skip
    return folder / "parallel_marks.so"

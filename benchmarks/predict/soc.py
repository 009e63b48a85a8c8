"""Systems on chip: which cores a phone or board has, one file in ``socs`` each, and the placing of threads on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cattrs

from sparrow.benchmarks.predict.core import load_core
from sparrow.benchmarks.runners.qemu import Cache
from sparrow.kernels.errors import SparrowError, near_names

SOCS = Path(__file__).with_name("socs")

Hierarchy = tuple[Cache, Cache]


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind that run at one frequency.

    Attributes:
        core: Name of a core's data file.
        cores: Number of them.
        ghz: Highest frequency.
        l2: Second level of cache.
        l2_shared: The cluster's cores have it together; otherwise each has one of its own.
    """

    core: str
    cores: int
    ghz: float
    l2: Cache
    l2_shared: bool


@dataclass(frozen=True)
class PlacedCore:
    """One core of a SoC.

    Attributes:
        number: As Linux numbers it.
        cluster: Index of its cluster.
        core: Name of the core.
        ghz: Its highest frequency.
    """

    number: int
    cluster: int
    core: str
    ghz: float


@dataclass(frozen=True)
class Soc:
    """Contents of a SoC's data file.

    Attributes:
        name: Its name.
        description: The chip and the boards that have it, in words.
        clusters: The slowest first. Linux numbers their cores in this order.
        l3: Cache that all cores share, with the system's own cache if it has one; ``None`` if there is none.
        memory_gigabytes_per_second: What one core copies, bytes read and bytes written together, where such a
            measurement is published; the peak says little of what a chip reaches.
        instruction_sets: Architecture level that all its cores have, which is what programs see; a key of
            ``runners.qemu.CPU_MODELS``.
        source: Where the data come from.
    """

    name: str
    description: str
    clusters: tuple[Cluster, ...]
    l3: Cache | None
    memory_gigabytes_per_second: float
    instruction_sets: str
    source: str

    @property
    def cores(self) -> tuple[PlacedCore, ...]:
        """All its cores by number."""
        kinds = [(index, cluster) for index, cluster in enumerate(self.clusters) for _ in range(cluster.cores)]
        return tuple(
            PlacedCore(number, index, kind.core, kind.ghz) for number, (index, kind) in enumerate(kinds)
        )  # fmt: skip

    def place(self, affinity: str, threads: int) -> tuple[PlacedCore, ...]:
        """Choose a core for each thread, the fastest first.

        Args:
            affinity: ``big`` for all clusters but those of the slowest kind of core, ``little`` for these, ``all``, or
                numbers of cores such as ``0,1,4``. Where all cores are of one kind, ``big`` and ``little`` are all.
            threads: Number of threads, at least 1.

        Raises:
            SparrowError: The affinity is not understood or names a core that is not there, or there are fewer cores
                than threads.
        """
        slowest = self.clusters[0].core
        little = [core for core in self.cores if core.core == slowest]
        big = [core for core in self.cores if core.core != slowest]
        groups = {"big": big or little, "little": little, "all": list(self.cores)}
        chosen = groups[affinity] if affinity in groups else self._numbered(affinity)
        if not 1 <= threads <= len(chosen):
            raise SparrowError(f"{threads} threads on {len(chosen)} cores (affinity {affinity} of {self.name})",
                               expected=f"1 to {len(chosen)} threads",
                               next_step="ask for fewer threads or for another affinity")  # fmt: skip
        return tuple(sorted(chosen, key=lambda core: (-core.cluster, core.number))[:threads])

    def _numbered(self, affinity: str) -> list[PlacedCore]:
        numbers = affinity.split(",")
        known = {str(core.number): core for core in self.cores}
        if not set(numbers) <= set(known) or len(set(numbers)) < len(numbers):
            raise SparrowError(f"affinity {affinity!r}", next_step="sparrow bench --help",
                               expected=f"big, little, all, or different numbers of cores from 0 to {len(known) - 1}, "
                                        f"such as 0,1; {self.name} has {len(known)} cores")  # fmt: skip
        return [known[number] for number in numbers]

    def hierarchies(self, cluster: int, placement: Sequence[PlacedCore]) -> tuple[Hierarchy, ...]:
        """Caches as they are for one of some threads, which work at the same time.

        Args:
            cluster: Index of the thread's cluster.
            placement: The core of each thread. They divide the caches that their cores share among them.

        Returns:
            First and second level, and where there is a third, first and third.
        """
        kind = self.clusters[cluster]
        neighbours = sum(placed.cluster == cluster for placed in placement)
        l1, l2 = load_core(kind.core).l1, _share(kind.l2, neighbours) if kind.l2_shared else kind.l2
        return ((l1, l2),) if self.l3 is None else ((l1, l2), (l1, _share(self.l3, len(placement))))

    def all_hierarchies(self, placement: Sequence[PlacedCore]) -> tuple[Hierarchy, ...]:
        """Every hierarchy that a placement's threads need, each once; one run simulates them all."""
        clusters = sorted({placed.cluster for placed in placement})
        return tuple(dict.fromkeys(pair for cluster in clusters for pair in self.hierarchies(cluster, placement)))


def _share(cache: Cache, threads: int) -> Cache:
    """A cache of the same ways with one of some equal parts of its sets."""
    way = cache.ways * cache.line
    return replace(cache, bytes=max(1, cache.bytes // way // threads) * way)


def soc_names() -> list[str]:
    """Names of the SoCs that predictions can be made for."""
    return sorted(path.stem for path in SOCS.glob("*.json"))


def load_soc(name: str) -> Soc:
    """Read a SoC's data file.

    Raises:
        SparrowError: There is none for this name; the nearest names are listed.
    """
    if name not in soc_names():
        raise SparrowError(f"no data for the SoC {name!r}", expected=near_names(name, soc_names()))
    return cattrs.structure(json.loads((SOCS / f"{name}.json").read_text(encoding="utf-8")), Soc)

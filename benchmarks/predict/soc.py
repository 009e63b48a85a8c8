"""Systems on chip: which cores a phone or board has, one file in ``socs`` each, and the placing of threads on them."""

import json
from collections.abc import Collection
from dataclasses import dataclass
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
        l2: Second level of cache of each core. One that the cluster shares is given to each in full: what one core
            brings in serves the others, and what the others throw out it loses, and both are left out.
    """

    core: str
    cores: int
    ghz: float
    l2: Cache


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
        l3: Cache that all cores share, ``None`` if there is none.
        memory_gigabytes_per_second: Peak bandwidth of the memory.
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

    def hierarchies(self, cluster: int) -> tuple[Hierarchy, ...]:
        """Caches of a cluster's cores: first and second level, and where there is a third, first and third."""
        kind = self.clusters[cluster]
        l1 = load_core(kind.core).l1
        return ((l1, kind.l2),) if self.l3 is None else ((l1, kind.l2), (l1, self.l3))

    def all_hierarchies(self, clusters: Collection[int]) -> tuple[Hierarchy, ...]:
        """Every hierarchy that some clusters need, each once; one run simulates them all."""
        return tuple(dict.fromkeys(pair for cluster in sorted(clusters) for pair in self.hierarchies(cluster)))


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

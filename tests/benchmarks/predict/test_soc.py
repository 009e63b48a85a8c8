"""SoCs: every data file is sound, and threads are placed on the cores asked for."""

import pytest

from sparrow.benchmarks.predict.core import core_names
from sparrow.benchmarks.predict.soc import load_soc, soc_names
from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.kernels.errors import SparrowError

NAMES = {"snapdragon-410", "snapdragon-835", "snapdragon-855", "snapdragon-855-plus", "snapdragon-888",
         "snapdragon-8-gen-2", "kirin-970", "rk3399", "rk3566", "rk3588", "raspberry-pi-3", "raspberry-pi-4",
         "raspberry-pi-5"}  # fmt: skip

CORES_OF = {
    "armv8-a": {"cortex-a53", "cortex-a72", "cortex-a73"},
    "armv8.2-a+dotprod": {"cortex-a55", "cortex-a76", "cortex-a78", "cortex-x1"},
    "armv8.6-a+i8mm": {"cortex-a510", "cortex-a710", "cortex-x2"},
}


def test_every_soc_is_there() -> None:
    assert set(soc_names()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_soc_has_sound_data(name: str) -> None:
    soc = load_soc(name)
    assert soc.name == name and soc.source and soc.description
    assert soc.instruction_sets in CPU_MODELS
    assert 1 < soc.memory_gigabytes_per_second < 100
    assert sum(cluster.cores for cluster in soc.clusters) == len(soc.cores) <= 8
    assert [cluster.ghz for cluster in soc.clusters] == sorted(cluster.ghz for cluster in soc.clusters)
    for index, cluster in enumerate(soc.clusters):
        assert cluster.core in core_names() and 1 <= cluster.ghz < 4
        assert cluster.core in CORES_OF[soc.instruction_sets]
        alone = [core for core in soc.cores if core.cluster == index][:1]
        for near, far in soc.hierarchies(index, alone):
            assert near.bytes < far.bytes and near.line == far.line
            sets = far.bytes // (far.ways * far.line)
            assert sets & (sets - 1) == 0


def test_an_unknown_soc_lists_the_nearest() -> None:
    with pytest.raises(SparrowError, match="snapdragon-865") as caught:
        load_soc("snapdragon-865")
    assert "did you mean 'snapdragon-8" in caught.value.expected


def test_cores_are_numbered_the_slowest_first() -> None:
    cores = load_soc("snapdragon-855").cores
    assert [core.number for core in cores] == list(range(8))
    assert [core.core for core in cores] == ["cortex-a55"] * 4 + ["cortex-a76"] * 4
    assert [core.ghz for core in cores[4:]] == [2.42, 2.42, 2.42, 2.84]


@pytest.mark.parametrize(
    ("affinity", "threads", "numbers"),
    [
        ("big", 1, [7]),
        ("big", 4, [7, 4, 5, 6]),
        ("little", 2, [0, 1]),
        ("all", 6, [7, 4, 5, 6, 0, 1]),
        ("0,1,4", 3, [4, 0, 1]),
        ("0,1,4", 1, [4]),
    ],
)
def test_threads_go_to_the_fastest_cores_asked_for(affinity: str, threads: int, numbers: list[int]) -> None:
    assert [core.number for core in load_soc("snapdragon-855").place(affinity, threads)] == numbers


@pytest.mark.parametrize("affinity", ["big", "little", "all"])
def test_cores_of_one_kind_are_all_big_and_little(affinity: str) -> None:
    assert [core.number for core in load_soc("raspberry-pi-4").place(affinity, 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("affinity", "threads"), [("big", 5), ("0,1", 3), ("all", 9), ("all", 0)])
def test_too_many_threads_are_refused(affinity: str, threads: int) -> None:
    with pytest.raises(SparrowError, match=f"{threads} threads on"):
        load_soc("snapdragon-855").place(affinity, threads)


@pytest.mark.parametrize("affinity", ["huge", "8", "0,0", "-1", "0,,1", "", "0, 1", "01"])
def test_an_affinity_that_is_none_is_refused(affinity: str) -> None:
    with pytest.raises(SparrowError, match="affinity") as caught:
        load_soc("snapdragon-855").place(affinity, 1)
    assert "big, little, all" in caught.value.expected


def test_one_run_simulates_each_hierarchy_once() -> None:
    old, pi, phone = load_soc("raspberry-pi-4"), load_soc("raspberry-pi-5"), load_soc("snapdragon-855")
    assert len(old.all_hierarchies(old.place("all", 1))) == 1
    assert len(pi.all_hierarchies(pi.place("all", 1))) == 2
    # Both kinds of large core share the first level and the third.
    assert len(phone.all_hierarchies(phone.place("big", 4))) == 3
    assert len(phone.all_hierarchies(phone.place("all", 8))) == 5


def test_threads_divide_the_caches_that_their_cores_share() -> None:
    old, phone = load_soc("rk3399"), load_soc("snapdragon-855")
    little, big = old.clusters[0].l2.bytes, old.clusters[1].l2.bytes
    for affinity, threads, expected in (("big", 1, big), ("big", 2, big // 2), ("little", 4, little // 4)):
        placement = old.place(affinity, threads)
        ((_, l2),) = old.hierarchies(placement[0].cluster, placement)
        assert l2.bytes == expected
    # One thread on a large core and two on small ones: the cluster of the large core is not theirs.
    placement = old.place("0,1,4", 3)
    assert [old.hierarchies(cluster, placement)[0][1].bytes for cluster in (0, 1)] == [little // 2, big]
    (_, own), (_, all_cores) = phone.hierarchies(2, phone.place("big", 4))
    assert phone.l3 is not None
    assert (own, all_cores.bytes) == (phone.clusters[2].l2, phone.l3.bytes // 4)
    # Thirds are whole sets, too.
    (_, _), (_, third) = phone.hierarchies(2, phone.place("big", 3))
    assert third.bytes <= phone.l3.bytes / 3 and third.bytes % (third.ways * third.line) == 0

"""Counting from QEMU's execution log, on made-up logs."""

from typing import Any

from sparrow.benchmarks.runners.execution_log import count_instructions

NOP, BEGIN, END, SECTION, TASK = "d503201f", "d5032f1f", "d5032f3f", "d5032f5f", "d5032f7f"


def translation(address: int, *words: str) -> str:
    lines = [f"0x{address + 4 * index:08x}:  {word}  text" for index, word in enumerate(words)]
    return "\n".join(["----------------", "IN: main", *lines, "", ""])


def entry(thread: int, place: int, address: int) -> str:
    return f"Trace {thread}: 0x{place:x} [0000000000001001/{address:016x}/00000001/00000200] main\n"


def count(*parts: str) -> tuple[list[int], list[list[int]], int]:
    counts = sections(*parts)
    return counts["program"], counts["regions"], counts["unbalanced_marks"]


def sections(*parts: str) -> dict[str, Any]:
    return count_instructions("".join(parts).encode().splitlines(keepends=True))


def test_empty_log() -> None:
    assert count("") == ([], [], 0)


def test_blocks_are_counted_each_time_they_are_entered() -> None:
    log = [translation(0x1000, NOP, NOP, NOP), *[entry(0, 0xA0, 0x1000)] * 3]
    assert count(*log) == ([9], [], 0)


def test_marks_inside_a_block_are_not_part_of_the_region() -> None:
    log = [translation(0x1000, NOP, BEGIN, NOP, NOP, END, NOP), *[entry(0, 0xA0, 0x1000)] * 2]
    assert count(*log) == ([12], [[2], [2]], 0)


def test_region_holds_what_the_other_threads_do() -> None:
    log = [
        translation(0x1000, NOP, BEGIN), entry(0, 0xA0, 0x1000),
        translation(0x2000, *[NOP] * 5), entry(0, 0xB0, 0x2000), *[entry(1, 0xB0, 0x2000)] * 2,
        translation(0x3000, END, NOP), entry(0, 0xC0, 0x3000), entry(2, 0xB0, 0x2000),
    ]  # fmt: skip
    program, regions, unbalanced = count(*log)
    assert (program, unbalanced) == ([9, 10, 5], 0)
    # The second block of thread 1 is still to be confirmed by its next when the region ends.
    assert regions in ([[5, 5, 0]], [[5, 10, 0]])


def test_entry_that_is_taken_back_counts_nothing() -> None:
    log = [
        translation(0x1000, BEGIN, NOP), entry(0, 0xA0, 0x1000),
        "Stopped execution of TB chain before 0xa0 [0000000000001000] main\n",
        entry(0, 0xA0, 0x1000), translation(0x2000, NOP, END), entry(0, 0xB0, 0x2000),
    ]  # fmt: skip
    assert count(*log) == ([4], [[2]], 0)


def test_place_that_is_used_again_for_a_longer_translation() -> None:
    log = [
        translation(0x1000, NOP), entry(0, 0xA0, 0x1000), entry(0, 0xA0, 0x1000),
        translation(0x1000, NOP, NOP, NOP), entry(0, 0xA0, 0x1000), entry(0, 0xA0, 0x1000),
    ]  # fmt: skip
    assert count(*log) == ([8], [], 0)


def test_unmatched_marks_are_reported() -> None:
    assert count(translation(0x1000, END, BEGIN, BEGIN), entry(0, 0xA0, 0x1000))[2] == 3


def test_sections_add_up_over_the_regions_and_outside_of_them_marks_mean_nothing() -> None:
    log = [
        translation(0x1000, SECTION, TASK), entry(0, 0xA0, 0x1000),
        translation(0x2000, NOP, BEGIN, NOP, SECTION, TASK, NOP, NOP, SECTION, END, NOP),
        *[entry(0, 0xB0, 0x2000)] * 2,
    ]  # fmt: skip
    counts = sections(*log)
    assert counts["regions"] == [[6], [6]]
    assert counts["sections"] == [
        {"tasks": 0, "instructions": [4]}, {"tasks": 2, "instructions": [8]}, {"tasks": 0, "instructions": [0]}
    ]  # fmt: skip


def test_only_the_thread_of_the_region_ends_sections_and_all_take_tasks() -> None:
    log = [
        translation(0x1000, BEGIN, SECTION), entry(0, 0xA0, 0x1000),
        translation(0x2000, NOP), entry(0, 0xB0, 0x2000),
        translation(0x3000, TASK, SECTION, NOP), *[entry(1, 0xC0, 0x3000)] * 3,
        translation(0x4000, SECTION, END), entry(0, 0xD0, 0x4000), entry(0, 0xB0, 0x2000),
    ]  # fmt: skip
    counts = sections(*log)
    assert [part["tasks"] for part in counts["sections"]] == [0, 2, 0]
    assert [part["instructions"] for part in counts["sections"]] == [[1, 0], [2, 6], [0, 0]]

"""Counts instructions from QEMU's own execution log, for a QEMU that was built without plugins.

Ubuntu 24.04 and Debian 13 build ``qemu-user`` that way. The counts are those of ``instruction_counter.c``; it takes
longer, since QEMU prints one line for each translation block that it enters::

    IN: main
    0x01010978:  d5032f1f  hint     #0x78
    0x0101097c:  d2807d00  movz     x0, #0x3e8

    Trace 0: 0x7f28e0000100 [0000000000001001/0000000001010978/00000001/00000200] main

The first part, once for each translation, has the block's instructions; the second the thread, where the block's
translation lies, and the block's address between the first two slashes. A line "Stopped execution of TB chain before
0x7f28e0000100 [...]" takes the entry of a block back.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

LOG_ITEMS = "in_asm,exec,nochain"

_BEGIN, _END = b"d5032f1f", b"d5032f3f"  # hint #120, hint #121


@dataclass(frozen=True)
class _Block:
    """A translation block: its number of instructions, and position and kind of the marks among them."""

    length: int
    marks: tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class _Entry:
    """What one text of a "Trace" line says: a thread enters a block, whose translation lies at a place."""

    thread: int
    place: bytes
    block: _Block


def count_instructions(log: Iterable[bytes]) -> tuple[list[int], list[list[int]], int]:
    """Read an execution log to its end.

    Args:
        log: Its lines.

    Returns:
        Instructions of each thread, the same for each region, and the number of region marks without a partner.
    """
    retired: dict[int, int] = defaultdict(int)
    at_begin: dict[int, int] | None = None
    regions: list[dict[int, int]] = []
    unbalanced = 0
    entered: dict[int, _Entry] = {}  # thread -> its last block, which may still be taken back

    def commit(thread: int, block: _Block) -> None:
        nonlocal at_begin, unbalanced
        start = retired[thread]
        retired[thread] += block.length
        for position, begins in block.marks:
            if begins:
                unbalanced += at_begin is not None
                at_begin = {**retired, thread: start + position + 1}
            elif at_begin is None:
                unbalanced += 1
            else:
                now = {**retired, thread: start + position}
                regions.append({other: count - at_begin.get(other, 0) for other, count in now.items()})
                at_begin = None

    translated: dict[bytes, _Block] = {}  # address in the guest -> translated, and not yet seen to run
    blocks: dict[bytes, _Block] = {}  # text of a "Trace" line behind the thread -> block
    known: dict[bytes, _Entry] = {}  # whole line; millions of lines have some thousand texts
    words: list[bytes] = []
    address = b""
    for line in log:
        if line.startswith(b"Trace "):
            entry = known.get(line)
            if entry is None or translated:
                head, _, text = line.partition(b": ")
                if (block := translated.pop(text.split(b"/", 2)[1], None)) is not None:
                    blocks[text] = block
                entry = known[line] = _Entry(int(head[6:]), text.split(b" ", 1)[0], blocks[text])
            if (last := entered.get(entry.thread)) is not None:
                commit(entry.thread, last.block)
            entered[entry.thread] = entry
        elif line.startswith(b"0x"):
            fields = line.split(None, 2)
            if not words:
                address = fields[0][2:-1].rjust(16, b"0")
            words.append(fields[1])
            marks = tuple((index, word == _BEGIN) for index, word in enumerate(words) if word in (_BEGIN, _END))
            translated[address] = _Block(len(words), marks)
        elif line.startswith(b"IN:"):
            words = []
        elif line.startswith(b"Stopped execution"):
            place = line.split()[6]
            for thread, last in list(entered.items()):
                if last.place == place:
                    del entered[thread]
                    break
    for thread, last in entered.items():
        commit(thread, last.block)
    threads = range(max(retired, default=-1) + 1)
    return (
        [retired[thread] for thread in threads],
        [[region.get(thread, 0) for thread in threads] for region in regions],
        unbalanced + (at_begin is not None),
    )

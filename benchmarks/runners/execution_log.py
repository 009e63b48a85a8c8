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
from typing import Any

LOG_ITEMS = "in_asm,exec,nochain"

_BEGIN, _END, _SECTION, _TASK = _MARKS = b"d5032f1f", b"d5032f3f", b"d5032f5f", b"d5032f7f"  # hint #120 to #123


@dataclass(frozen=True)
class _Block:
    """A translation block: its number of instructions, and position and word of the marks among them."""

    length: int
    marks: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class _Entry:
    """What one text of a "Trace" line says: a thread enters a block, whose translation lies at a place."""

    thread: int
    place: bytes
    block: _Block


class _Counts:
    """What was retired so far, by thread, and the regions and sections that the marks divide it into."""

    def __init__(self) -> None:
        self.retired: dict[int, int] = defaultdict(int)
        self.regions: list[dict[int, int]] = []
        self.sections: list[tuple[dict[int, int], int]] = []  # instructions by thread, tasks
        self.unbalanced = 0
        self._at_begin: dict[int, int] | None = None  # None outside of regions
        self._at_section: dict[int, int] = {}
        self._section, self._tasks, self._region_thread = 0, 0, 0

    def commit(self, thread: int, block: _Block) -> None:
        """Count a block that a thread has entered."""
        start = self.retired[thread]
        self.retired[thread] += block.length
        for position, mark in block.marks:
            if mark == _BEGIN:
                self.unbalanced += self._at_begin is not None
                self._at_begin = self._at_section = {**self.retired, thread: start + position + 1}
                self._section, self._tasks, self._region_thread = 0, 0, thread
            elif self._at_begin is None:
                self.unbalanced += mark == _END
            elif mark == _TASK:
                self._tasks += 1
            elif mark == _END:
                now = self._end_section({**self.retired, thread: start + position})
                self.regions.append(_difference(now, self._at_begin))
                self._at_begin = None
            elif thread == self._region_thread:
                self._end_section({**self.retired, thread: start + position + 1})

    def _end_section(self, now: dict[int, int]) -> dict[int, int]:
        if self._section == len(self.sections):
            self.sections.append((defaultdict(int), 0))
        instructions, tasks = self.sections[self._section]
        for thread, count in _difference(now, self._at_section).items():
            instructions[thread] += count
        self.sections[self._section] = instructions, tasks + self._tasks
        self._at_section, self._section, self._tasks = now, self._section + 1, 0
        return now

    def document(self) -> dict[str, Any]:
        """The same as ``instruction_counter.c`` writes."""
        threads = range(max(self.retired, default=-1) + 1)
        return {
            "unbalanced_marks": self.unbalanced + (self._at_begin is not None),
            "program": [self.retired[thread] for thread in threads],
            "regions": [[region.get(thread, 0) for thread in threads] for region in self.regions],
            "sections": [
                {"tasks": tasks, "instructions": [instructions.get(thread, 0) for thread in threads]}
                for instructions, tasks in self.sections
            ],
        }


def _difference(now: dict[int, int], before: dict[int, int]) -> dict[int, int]:
    return {thread: count - before.get(thread, 0) for thread, count in now.items()}


def count_instructions(log: Iterable[bytes]) -> dict[str, Any]:
    """Read an execution log to its end.

    Args:
        log: Its lines.

    Returns:
        Instructions of each thread, of each region and section, tasks, and the number of region marks without a
        partner: the document that ``instruction_counter.c`` writes.
    """
    counts = _Counts()
    entered: dict[int, _Entry] = {}  # thread -> its last block, which may still be taken back
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
                counts.commit(entry.thread, last.block)
            entered[entry.thread] = entry
        elif line.startswith(b"0x"):
            fields = line.split(None, 2)
            if not words:
                address = fields[0][2:-1].rjust(16, b"0")
            words.append(fields[1])
            marks = tuple((index, word) for index, word in enumerate(words) if word in _MARKS)
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
        counts.commit(thread, last.block)
    return counts.document()

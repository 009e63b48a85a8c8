"""What the tests read of ELF files and of archives of them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LOAD, THREAD_LOCAL = 1, 7
_SYMBOL_TABLE = 2
_UNDEFINED = 0


@dataclass(frozen=True)
class Elf:
    """A 64-bit little-endian ELF file."""

    content: bytes

    def segments(self, kind: int) -> list[tuple[int, int]]:
        """File offset and alignment of each segment of a kind."""
        (offset,) = struct.unpack_from("<Q", self.content, 32)
        size, count = struct.unpack_from("<HH", self.content, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", self.content, offset + size * index) for index in range(count)]
        return [(header[2], header[7]) for header in headers if header[0] == kind]

    def undefined(self) -> set[str]:
        """Names that another file has to define."""
        return {name for name, section in self._symbols() if section == _UNDEFINED and name}

    def defined(self) -> set[str]:
        """Names that this file defines."""
        return {name for name, section in self._symbols() if section != _UNDEFINED and name}

    def _sections(self) -> list[tuple[int, int, int, int]]:
        """Type, offset, size and linked section of each section."""
        (table,) = struct.unpack_from("<Q", self.content, 40)
        size, count = struct.unpack_from("<HH", self.content, 58)
        sections = []
        for index in range(count):
            _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", self.content, table + size * index)
            sections.append((kind, offset, length, link))
        return sections

    def _symbols(self) -> Iterator[tuple[str, int]]:
        sections = self._sections()
        for kind, offset, length, link in sections:
            if kind != _SYMBOL_TABLE:
                continue
            names = sections[link][1]
            for entry in range(offset, offset + length, 24):
                name, info, _, section = struct.unpack_from("<IBBH", self.content, entry)
                if info >> 4:  # not local
                    end = self.content.index(b"\0", names + name)
                    yield self.content[names + name : end].decode(), section


def members(archive: bytes) -> list[Elf]:
    """ELF files of a static library."""
    found, position = [], 8
    while position + 60 <= len(archive):
        size = int(archive[position + 48 : position + 58])
        content = archive[position + 60 : position + 60 + size]
        if content[:4] == b"\x7fELF":
            found.append(Elf(content))
        position += 60 + size + size % 2
    return found

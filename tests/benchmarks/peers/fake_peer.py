"""A runtime that does not exist."""

import dataclasses
from pathlib import Path

from sparrow.benchmarks.peers.peer import Peer


@dataclasses.dataclass(frozen=True)
class FakePeer(Peer):
    """A peer whose file is elsewhere, and which needs no packages."""

    path: Path = Path()

    @property
    def version(self) -> str:
        return "1.0"

    @property
    def file(self) -> Path:
        return self.path

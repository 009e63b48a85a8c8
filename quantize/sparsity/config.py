"""How a network is pruned, as a frozen value that goes to JSON and back."""

import dataclasses
import math
from typing import Any

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.sparsity.blocks import BLOCKS
from sparrow.quantize.sparsity.criteria import CRITERIA
from sparrow.quantize.sparsity.schedules import SCHEDULES

SCOPES = ("global", "per-layer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Which blocks of weights become zero, and when (terms of the survey arXiv 2102.00554).

    Attributes:
        sparsity: Share of the blocks that are zero at the end, over all pruned layers, 0 to below 1.
        block: Shape of a block, input channels x output channels: a key of ``BLOCKS``.
        criterion: What a block is worth: a key of ``CRITERIA``.
        scope: ``global`` compares the blocks of all layers, ``per-layer`` prunes the same share of each.
        schedule: When: a key of ``SCHEDULES``.
        start: Share of the training before the first block is pruned.
        stop: Share of the training after which the masks stay as they are.
        interval: Steps from one choice of blocks to the next.
        layers_dense: Patterns of layers that are not pruned. ``None`` means the first and the last layer that run.
            Grouped convolutions never are.

    Raises:
        SparrowError: A value is out of range or of another type.
    """

    sparsity: float
    block: str = "4x4"
    criterion: str = "zero-component"
    scope: str = "global"
    schedule: str = "cubic"
    start: float = 0.0
    stop: float = 0.5
    interval: int = 50
    layers_dense: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check("sparsity", _is_share(self.sparsity) and self.sparsity < 1, "a share of the blocks, 0 to below 1")
        for name, known in (("block", BLOCKS), ("criterion", CRITERIA), ("schedule", SCHEDULES), ("scope", SCOPES)):
            self._check(name, getattr(self, name) in known, near_names(str(getattr(self, name)), known))
        self._check("start", _is_share(self.start), "a share of the training, 0 to 1")
        self._check("stop", _is_share(self.stop) and self.stop >= self.start, "a share of the training, start to 1")
        self._check("interval", type(self.interval) is int and self.interval >= 1, "a whole number of steps from 1")
        patterns = self.layers_dense
        valid = patterns is None or (isinstance(patterns, tuple) and all(isinstance(name, str) for name in patterns))
        self._check("layers_dense", valid, "a tuple of layer names or patterns")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "SparsityConfig":
        """Build a configuration from the keys of its JSON form.

        Raises:
            SparrowError: A key is unknown, ``sparsity`` is missing, or a value is invalid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in content:
            if key not in known:
                raise SparrowError(f"a sparsity configuration has no key {key!r}", expected=near_names(key, known))
        if "sparsity" not in content:
            raise SparrowError("the sparsity configuration does not say how much", expected="a key 'sparsity'")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**values)

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise SparrowError(f"{name} is {getattr(self, name)!r}", expected=expected)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1

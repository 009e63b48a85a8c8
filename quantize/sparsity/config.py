"""How a network is pruned, as a frozen value that goes to JSON and back."""

import dataclasses
from typing import Any

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.config_values import as_tuples, is_number, is_share
from sparrow.quantize.sparsity.criteria import CRITERIA
from sparrow.quantize.sparsity.distributions import DISTRIBUTIONS
from sparrow.quantize.sparsity.patterns import PATTERNS
from sparrow.quantize.sparsity.schedules import SCHEDULES

# How earlier releases wrote it.
_OLDER_KEYS = {"block": "pattern", "scope": "distribution"}
_OLDER_VALUES = {"1x1": "unstructured"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Which weights become zero, and when (terms of the survey arXiv 2102.00554).

    Attributes:
        sparsity: Share of the blocks that are zero at the end, over all pruned layers, 0 to below 1.
        pattern: Which weights become zero together: a key of ``PATTERNS``.
        criterion: What a block is worth: a key of ``CRITERIA``.
        distribution: How many blocks each layer gives: a key of ``DISTRIBUTIONS``.
        schedule: When: a key of ``SCHEDULES``.
        start: Share of the training before the first block is pruned.
        stop: Share of the training after which the masks stay as they are.
        interval: Steps from one choice of blocks to the next.
        regrown: Share of a layer's remaining blocks that change places at the start of ``set`` and ``rigl``; it falls
            to zero as half a cosine.
        penalty: Weight of the loss term that draws the blocks to be pruned into the zero component; 0 for none.
        layers_dense: Patterns of layers that are not pruned. ``None`` means the first and the last layer that run.
            Grouped convolutions never are.
        shares: Layer names or patterns and the sparsity of these layers, in place of ``sparsity``, for the
            distributions ``per-layer`` and ``sensitivity``; a later one overrides an earlier one.

    Raises:
        SparrowError: A value is out of range or of another type, or two do not go together.
    """

    sparsity: float
    pattern: str = "4x4"
    criterion: str = "magnitude"
    distribution: str = "global-normalized"
    schedule: str = "cubic"
    start: float = 0.0
    stop: float = 0.5
    interval: int = 50
    regrown: float = 0.3
    penalty: float = 0.0
    layers_dense: tuple[str, ...] | None = None
    shares: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        self._check("sparsity", is_share(self.sparsity) and self.sparsity < 1, "a share of the blocks, 0 to below 1")
        for name, known in (("pattern", PATTERNS), ("criterion", CRITERIA), ("schedule", SCHEDULES),
                            ("distribution", DISTRIBUTIONS)):  # fmt: skip
            value = getattr(self, name)
            self._check(name, isinstance(value, str) and value in known, near_names(str(value), known))
        self._check("start", is_share(self.start), "a share of the training, 0 to 1")
        self._check("stop", is_share(self.stop) and self.stop >= self.start, "a share of the training, start to 1")
        self._check("interval", type(self.interval) is int and self.interval >= 1, "a whole number of steps from 1")
        self._check("regrown", is_share(self.regrown), "a share of the blocks, 0 to 1")
        self._check("penalty", is_number(self.penalty) and self.penalty >= 0, "a number from 0")
        patterns = self.layers_dense
        valid = patterns is None or (isinstance(patterns, tuple) and all(isinstance(name, str) for name in patterns))
        self._check("layers_dense", valid, "a tuple of layer names or patterns")
        self._check("shares", isinstance(self.shares, tuple) and all(map(_is_layer_share, self.shares)),
                    "pairs of a layer and its sparsity, 0 to below 1")  # fmt: skip
        self._check_together()

    def _check_together(self) -> None:
        pattern = PATTERNS[self.pattern]
        if self.sparsity > pattern.most:
            raise SparrowError(f"a sparsity of {self.sparsity} with the pattern {self.pattern}",
                               expected=f"at most {pattern.most}", next_step="choose another pattern")  # fmt: skip
        if any(share > pattern.most for _, share in self.shares):
            raise SparrowError(f"shares of {self.shares} with the pattern {self.pattern}",
                               expected=f"at most {pattern.most}")  # fmt: skip
        if pattern.kept and self.distribution == "erk":
            raise SparrowError(f"the distribution erk with the pattern {self.pattern}",
                               expected="a pattern of blocks, which may fill a layer",
                               next_step="choose the distribution per-layer")  # fmt: skip
        if pattern.kept and SCHEDULES[self.schedule].regrows:
            raise SparrowError(f"the schedule {self.schedule} with the pattern {self.pattern}",
                               expected="blocks that can change places freely",
                               next_step="choose another schedule, or a pattern of blocks")  # fmt: skip
        if self.penalty and self.criterion != "zero-component":
            raise SparrowError(f"a penalty with the criterion {self.criterion}", expected="zero-component")
        if SCHEDULES[self.schedule].regrows == "gradient" and self.criterion in ("taylor", "movement"):
            raise SparrowError(f"the schedule {self.schedule} with the criterion {self.criterion}",
                               expected="magnitude, zero-component or gradient",
                               next_step="choose another criterion")  # fmt: skip
        if self.shares and self.distribution not in ("per-layer", "sensitivity"):
            raise SparrowError(f"shares of layers with the distribution {self.distribution}", expected="per-layer")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "SparsityConfig":
        """Build a configuration from the keys of its JSON form.

        Raises:
            SparrowError: A key is unknown, ``sparsity`` is missing, or a value is invalid.
        """
        content = {_OLDER_KEYS.get(key, key): value for key, value in content.items()}
        known = [field.name for field in dataclasses.fields(cls)]
        for key in content:
            if key not in known:
                raise SparrowError(f"a sparsity configuration has no key {key!r}", expected=near_names(key, known))
        if "sparsity" not in content:
            raise SparrowError("the sparsity configuration does not say how much", expected="a key 'sparsity'")
        values: dict[str, Any] = {key: as_tuples(value) for key, value in content.items()}
        if values.get("pattern") in list(_OLDER_VALUES):
            values["pattern"] = _OLDER_VALUES[values["pattern"]]
        return cls(**values)

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise SparrowError(f"{name} is {getattr(self, name)!r}", expected=expected)


def _is_layer_share(pair: Any) -> bool:
    valid = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
    return valid and is_share(pair[1]) and bool(pair[1] < 1)

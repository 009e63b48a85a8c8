"""How a network is quantized, as frozen values that go to JSON and back."""

import dataclasses
import json
import math
from typing import Any, ClassVar, TypeVar

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.activations import CALIBRATION_METHODS
from sparrow.quantize.sparsity.config import SparsityConfig

Config = TypeVar("Config", bound="QuantizeConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """What all methods share.

    Layers are named as in the network (``layer1.0.conv2``); a pattern may hold ``*``, ``?`` and ``[...]``.

    Attributes:
        layers_float: Patterns of convolutions and linear layers that stay float.
        activation_bits: 8 for int8 activations, ``None`` for float ones.
        calibration: How the activations' ranges are chosen: ``min-max``, ``percentile`` or ``mse``.
        percentile: Percent of an activation's values that its range holds, for ``percentile``.
        sparsity: How the network is pruned, ``None`` for not at all.

    Raises:
        SparrowError: A value is out of range or of another type.
    """

    method: ClassVar[str]  # the name users type
    version: ClassVar[int] = 1  # of the JSON form

    layers_float: tuple[str, ...] = ()
    activation_bits: int | None = 8
    calibration: str = "percentile"
    percentile: float = 99.99
    sparsity: SparsityConfig | None = None

    def __post_init__(self) -> None:
        self._check_patterns("layers_float")
        self._check("activation_bits", self.activation_bits in (8, None), "8, or none for float activations")
        self._check("calibration", self.calibration in CALIBRATION_METHODS, ", ".join(CALIBRATION_METHODS))
        self._check("percentile", _is_number(self.percentile) and 50 < self.percentile <= 100, "above 50, at most 100")
        self._check("sparsity", isinstance(self.sparsity, SparsityConfig | None), "a sparsity configuration, or none")

    def to_json(self) -> str:
        """Write the configuration as one JSON object with its method and version."""
        return json.dumps({"method": self.method, "version": self.version, **dataclasses.asdict(self)})

    @classmethod
    def from_dict(cls: type[Config], content: dict[str, Any]) -> Config:
        """Build a configuration from the keys of its JSON form, without method and version.

        Raises:
            SparrowError: A key is unknown or a value is invalid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in content:
            if key not in known:
                raise SparrowError(f"a {cls.method} configuration has no key {key!r}", expected=near_names(key, known))
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        if isinstance(content.get("sparsity"), dict):
            values["sparsity"] = SparsityConfig.from_dict(content["sparsity"])
        return cls(**values)

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise SparrowError(f"{name} is {getattr(self, name)!r}", expected=expected)

    def _check_patterns(self, name: str) -> None:
        patterns = getattr(self, name)
        valid = isinstance(patterns, tuple) and all(isinstance(pattern, str) for pattern in patterns)
        self._check(name, valid, "a tuple of layer names or patterns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DgmsConfig(QuantizeConfig):
    """Weight sharing by differentiable Gaussian mixtures (arXiv 2112.15139).

    Attributes:
        bits: 2, 3 or 4: a layer's weights share 2^bits values.
        sigma_init: A component's first σ: ``cluster``, its k-means cluster's deviation, or ``empirical``, 0.01.
        temperature: First value of τ.
        layers_8bit: Patterns of layers that get int8 weights, one scale a channel, in place of a codebook. ``None``
            means the first and the last layer that run, and depthwise convolutions.
    """

    method: ClassVar[str] = "dgms"

    bits: int = 4
    sigma_init: str = "cluster"
    temperature: float = 0.01
    layers_8bit: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("bits", type(self.bits) is int and 2 <= self.bits <= 4, "2, 3 or 4")
        self._check("sigma_init", self.sigma_init in ("cluster", "empirical"), "cluster or empirical")
        self._check("temperature", _is_number(self.temperature) and 1e-4 <= self.temperature <= 1, "from 0.0001 to 1")
        if self.layers_8bit is not None:
            self._check_patterns("layers_8bit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Config(QuantizeConfig):
    """Symmetric int8 weights with one scale for each output channel, in every layer."""

    method: ClassVar[str] = "int8"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

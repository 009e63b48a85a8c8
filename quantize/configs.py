"""How a network is quantized, as frozen values that go to JSON and back."""

import dataclasses
import json
from typing import Any, ClassVar, TypeVar

import yaml

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.activations import CALIBRATION_METHODS
from sparrow.quantize.config_values import as_tuples, is_number
from sparrow.quantize.sparsity.config import SparsityConfig

CORRECTIONS = ("none", "bias", "layerwise")

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
        equalize: Whether the channels between two layers are scaled alike first (arXiv 1906.04721, section 4.1).
        correction: What calibration makes good of the weights' rounding: ``none``; ``bias``, the mean of each output
            channel; ``layerwise``, each layer's outputs, by choosing its stored weights anew.

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
    equalize: bool = False
    correction: str = "none"

    def __post_init__(self) -> None:
        self._check_patterns("layers_float")
        self._check("activation_bits", self.activation_bits in (8, None), "8, or none for float activations")
        self._check("calibration", self.calibration in CALIBRATION_METHODS, ", ".join(CALIBRATION_METHODS))
        self._check("percentile", is_number(self.percentile) and 50 < self.percentile <= 100, "above 50, at most 100")
        self._check("sparsity", isinstance(self.sparsity, SparsityConfig | None), "a sparsity configuration, or none")
        self._check("equalize", isinstance(self.equalize, bool), "true or false")
        self._check("correction", self.correction in CORRECTIONS, ", ".join(CORRECTIONS))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, with its method and version."""
        return {"method": self.method, "version": self.version, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Write the configuration as one JSON object."""
        return json.dumps(self.to_dict())

    def to_yaml(self) -> str:
        """Write the configuration as a YAML mapping, one key a line."""
        # By way of JSON, which turns tuples into lists.
        return str(yaml.safe_dump(json.loads(self.to_json()), sort_keys=False))

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
        values: dict[str, Any] = {key: as_tuples(value) for key, value in content.items()}
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
class CodebookConfig(QuantizeConfig):
    """What the methods share whose weights are indices into a small table.

    Attributes:
        bits: A layer's weights share 2^bits values; one of ``bits_known``.
        channel_scale: Whether each output channel has a scale that the values are multiplied by.
        layers_8bit: Patterns of layers that get int8 weights, one scale a channel, in place of a table. ``None``
            means the first and the last layer that run, and depthwise convolutions.
        layer_bits: Layer names or patterns and the bits of these layers, 8 for int8 weights; they override the above,
            and a later one overrides an earlier one.
    """

    bits_known: ClassVar[tuple[int, ...]] = (2, 3, 4)

    bits: int = 4
    channel_scale: bool = False
    layers_8bit: tuple[str, ...] | None = None
    layer_bits: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ", ".join(map(str, self.bits_known))
        self._check("bits", type(self.bits) is int and self.bits in self.bits_known, f"one of {known}")
        self._check("channel_scale", isinstance(self.channel_scale, bool), "true or false")
        if self.layers_8bit is not None:
            self._check_patterns("layers_8bit")
        pairs = isinstance(self.layer_bits, tuple) and all(map(_is_layer_bits, self.layer_bits))
        valid = pairs and all(bits in (*self.bits_known, 8) for _, bits in self.layer_bits)
        self._check("layer_bits", valid, f"pairs of a layer and its bits, one of {known}, or 8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DgmsConfig(CodebookConfig):
    """Weight sharing by differentiable Gaussian mixtures (arXiv 2112.15139).

    Attributes:
        sigma_init: A component's first σ: ``cluster``, its k-means cluster's deviation, or ``empirical``, 0.01.
        temperature: First value of τ.
    """

    method: ClassVar[str] = "dgms"

    sigma_init: str = "cluster"
    temperature: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("sigma_init", self.sigma_init in ("cluster", "empirical"), "cluster or empirical")
        self._check("temperature", is_number(self.temperature) and 1e-4 <= self.temperature <= 1, "from 0.0001 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansConfig(CodebookConfig):
    """Weight sharing by k-means with trained centers (Deep Compression, arXiv 1510.00149)."""

    method: ClassVar[str] = "kmeans"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LsqConfig(CodebookConfig):
    """Uniform weights with a learned step (LSQ, arXiv 1902.08153), where a table's values are integers.

    With ``bits=8`` every layer has int8 weights. ``channel_scale`` gives each output channel a step of its own.
    """

    method: ClassVar[str] = "lsq"
    bits_known: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Config(QuantizeConfig):
    """Symmetric int8 weights with one scale for each output channel, in every layer."""

    method: ClassVar[str] = "int8"


def _is_layer_bits(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int

"""Recipes: a whole job, from a trained network to a bundle, as one YAML file that a user can copy and change.

* ``Recipe``: what a file says.
* ``recipe_names``, ``find_recipe``: the recipes that ship with Sparrow.
* ``read_recipe``: a recipe by name or path.
"""

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.api import QUANTIZERS, config_from_json
from sparrow.quantize.config_values import as_tuples, is_share, is_whole
from sparrow.quantize.configs import QuantizeConfig
from sparrow.quantize.data import DATASETS
from sparrow.quantize.distill import DistillConfig
from sparrow.quantize.lowrank import LowRankConfig
from sparrow.quantize.train import TrainConfig

RECIPES = Path(__file__).with_name("recipe_files")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """The network that a recipe's network learns from.

    Attributes:
        model: A registered network or ``path/to/file.py:factory``.
        checkpoint: Its trained float weights, ``None`` to be named when the recipe is run.
        distillation: How much to listen to it.
    """

    model: str
    checkpoint: Path | None = None
    distillation: DistillConfig = dataclasses.field(default_factory=DistillConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A job from a trained float network to a verified bundle.

    Attributes:
        description: What comes out, in one line.
        model: A registered network or ``path/to/file.py:factory``.
        data: A key of ``DATASETS``.
        quantization: Method, bits and sparsity.
        checkpoint: Trained float weights; ``None`` to be named when the recipe is run, or trained first.
        float_training: How float weights are trained where no checkpoint is named; ``None`` refuses to.
        removed_channels: Share of the channels inside the network that are taken out of it first, above 0 to below 1.
        low_rank: How layers are replaced by factors before quantization; ``None`` for not at all.
        pruning: How the network is pruned and trained in float before quantization, which then keeps its zeros;
            ``None`` prunes while it is fine-tuned.
        training: How the quantized network is fine-tuned; ``None`` leaves it as it was calibrated.
        teacher: What it learns from while it is fine-tuned, beside the labels.
        calibration_images: Training images that choose the activations' ranges.
        seed: Seed of the choice of these images.
        target: Core or architecture to compile for.
        soc: System on chip that the latency is predicted for.
        verify_images: Test images that the bundle is compared on; ``None`` for all.
    """

    description: str
    model: str
    data: str
    quantization: QuantizeConfig
    checkpoint: Path | None = None
    float_training: TrainConfig | None = None
    removed_channels: float | None = None
    low_rank: LowRankConfig | None = None
    pruning: TrainConfig | None = None
    training: TrainConfig | None = None
    teacher: Teacher | None = None
    calibration_images: int = 1024
    seed: int = 0
    target: str = "cortex-a76"
    soc: str = "kirin-970"
    verify_images: int | None = 256

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, every default written out; what ``from_dict`` takes."""
        content = dataclasses.asdict(self)
        content["quantization"] = json.loads(self.quantization.to_json())
        for name in ("float_training", "low_rank", "pruning", "training"):
            config: TrainConfig | LowRankConfig | None = getattr(self, name)
            content[name] = json.loads(config.to_json()) if config is not None else None
        if self.teacher is not None:
            content["teacher"] |= content["teacher"].pop("distillation")
        for section in filter(None, (content, content["teacher"])):
            section["checkpoint"] = str(section["checkpoint"]) if section["checkpoint"] else None
        plain: dict[str, Any] = json.loads(json.dumps(content))  # lists in place of tuples
        return plain

    @classmethod
    def from_dict(cls, content: object, *, folder: Path = Path()) -> "Recipe":
        """Build a recipe from the values of a YAML file; a missing key takes its default.

        Args:
            content: The values.
            folder: What relative paths of checkpoints start at.

        Raises:
            SparrowError: A key is unknown or missing, or a value is invalid.
        """
        values = _section(content, "recipe", [field.name for field in dataclasses.fields(cls)])
        if missing := [key for key in ("description", "model", "data", "quantization") if values.get(key) is None]:
            raise SparrowError(f"the recipe does not say its {missing[0]}", expected=f"a key {missing[0]!r}")
        for key in ("description", "model", "data", "target", "soc"):
            if not isinstance(values.get(key, ""), str):
                raise SparrowError(f"{key} is {values[key]!r}", expected="a text")
        if values["data"] not in DATASETS:
            raise SparrowError(f"unknown data set {values['data']!r}", expected=near_names(values["data"], DATASETS))
        for key in ("calibration_images", "seed", "verify_images"):
            _check_count(key, values.get(key, 1), least=0 if key == "seed" else 1, optional=key == "verify_images")
        values["quantization"] = _quantization(values["quantization"])
        for key in ("float_training", "pruning", "training"):
            if values.get(key) is not None:
                values[key] = TrainConfig.from_dict(_section(values[key], key), of=key)
        if values.get("pruning") is not None and values["quantization"].sparsity is None:
            raise SparrowError("pruning without a sparsity", expected="a section sparsity in quantization",
                               next_step="add one, or leave the pruning out")  # fmt: skip
        if values.get("low_rank") is not None:
            values["low_rank"] = LowRankConfig.from_dict(_section(values["low_rank"], "low_rank"))
        removed = values.get("removed_channels")
        if removed is not None and not (is_share(removed) and 0 < removed < 1):
            raise SparrowError(f"removed_channels is {removed!r}", expected="a share above 0, below 1; or null")
        if values.get("teacher") is not None:
            values["teacher"] = _teacher(values["teacher"], folder)
            if values.get("training") is None and values.get("pruning") is None:
                raise SparrowError("a teacher, and neither training nor pruning", expected="a training to teach in",
                                   next_step="add a section training, or leave the teacher out")  # fmt: skip
        values["checkpoint"] = _checkpoint(values.get("checkpoint"), folder)
        return cls(**values)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with Sparrow."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Find the file of a recipe.

    Args:
        name: Name of a recipe that ships with Sparrow, or the path of a YAML file.

    Raises:
        SparrowError: There is no such recipe.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise SparrowError(f"there is no file {name}", expected="a recipe",
                               next_step="copy one to start from: sparrow recipe show resnet20-dgms4")  # fmt: skip
        return Path(name)
    if name not in recipe_names():
        raise SparrowError(f"unknown recipe {name!r}", expected=near_names(name, recipe_names()),
                           next_step="name one of sparrow recipe list, or a file that ends in .yaml")  # fmt: skip
    return RECIPES / f"{name}.yaml"


def read_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: Name of a recipe that ships with Sparrow, or the path of a YAML file.

    Raises:
        SparrowError: There is no such recipe, it is no YAML mapping, or a key or value is wrong.
    """
    path = find_recipe(name)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SparrowError(f"{path} is no YAML: {' '.join(str(error).split())}", expected="a recipe") from error
    try:
        return Recipe.from_dict(content, folder=path.parent)
    except SparrowError as error:
        raise SparrowError(f"{path.name}: {error.got}", expected=error.expected, next_step=error.next_step) from error


def changed_keys(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say in which keys two recipes differ, as texts ``key: before, now after``; keys of sections with a point.

    Args:
        before: A recipe's ``to_dict``.
        after: Another's.
    """
    old, new = _flatten(before), _flatten(after)

    def text(value: object) -> str:
        return "not set" if value is None else str(value)

    # A key that an earlier release did not know is as good as null.
    return [
        f"{key}: {text(old.get(key))}, now {text(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


class _Loader(yaml.SafeLoader):
    """A safe loader that takes 1e-3 for a number, as YAML 1.2 does and PyYAML does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _section(content: object, name: str, known: Collection[str] | None = None) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SparrowError(f"{name} is {content!r}", expected="a mapping, one 'key: value' a line")
    for key in content:
        if known is not None and key not in known:
            raise SparrowError(f"a {name} has no key {key!r}", expected=near_names(key, known))
    return dict(content)


def _quantization(content: object) -> QuantizeConfig:
    values = _section(content, "quantization")
    method = values.get("method")
    if method not in QUANTIZERS:
        raise SparrowError(f"the quantization method is {method!r}", expected=near_names(str(method), QUANTIZERS))
    return config_from_json(json.dumps({"version": QUANTIZERS[method].config.version, **values}))


def _teacher(content: object, folder: Path) -> Teacher:
    options = [field.name for field in dataclasses.fields(DistillConfig)]
    values = _section(content, "teacher", ["model", "checkpoint", *options])
    if not isinstance(values.get("model"), str):
        raise SparrowError(f"the teacher's model is {values.get('model')!r}", expected="the name of a network")
    distillation = DistillConfig(**{key: as_tuples(values[key]) for key in options if key in values})
    checkpoint = _checkpoint(values.get("checkpoint"), folder)
    return Teacher(model=values["model"], checkpoint=checkpoint, distillation=distillation)


def _checkpoint(value: object, folder: Path) -> Path | None:
    if value is not None and not isinstance(value, str):
        raise SparrowError(f"checkpoint is {value!r}", expected="the path of a file")
    return None if value is None else folder / value


def _check_count(name: str, value: Any, *, least: int, optional: bool) -> None:
    if not (is_whole(value) and value >= least) and not (optional and value is None):
        raise SparrowError(f"{name} is {value!r}", expected=f"a whole number from {least}" + (", or null" * optional))


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

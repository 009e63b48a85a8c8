"""Recipes as files: those that ship, a user's own, and what is refused."""

import dataclasses
import re

import pytest
import yaml

from sparrow.kernels.errors import SparrowError
from sparrow.models import MODELS
from sparrow.quantize.configs import DgmsConfig
from sparrow.quantize.lowrank import LowRankConfig
from sparrow.quantize.recipe_file import Recipe, changed_keys, find_recipe, read_recipe, recipe_names
from sparrow.quantize.train import TrainConfig

SMALL = """
description: a test
model: digits
data: digits
quantization: {method: dgms, bits: 3, sparsity: {sparsity: 0.5}}
training: {epochs: 2, learning_rate: 1e-3}
teacher: {model: resnet20, checkpoint: teacher.pt, temperature: 2, attention: [[conv2, layer1]]}
removed_channels: 0.25
low_rank: {layers: [conv2], budget: 0.5}
checkpoint: weights/float.pt
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.yaml").write_text(SMALL)
    return tmp_path / "own.yaml"


def test_the_recipes_that_ship_are_whole():
    assert {"digits-dgms4", "resnet20-dgms4", "resnet20-dgms3", "resnet20-dgms2", "resnet20-dgms4-block50",
            "resnet56-dgms4-block50", "resnet56-dgms4-block75"} <= set(recipe_names())  # fmt: skip
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.model in MODELS and recipe.description
        assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
        text = find_recipe(name).read_text()
        assert "checkpoint:" not in text  # a path of somebody's machine


def test_a_users_own_recipe(own):
    recipe = read_recipe(str(own))
    assert recipe.quantization == DgmsConfig(bits=3, sparsity=recipe.quantization.sparsity)
    assert recipe.quantization.sparsity is not None and recipe.quantization.sparsity.sparsity == 0.5
    assert recipe.training == TrainConfig(epochs=2, learning_rate=0.001)  # PyYAML alone takes 1e-3 for a text
    assert recipe.checkpoint == own.parent / "weights/float.pt"
    assert recipe.teacher is not None and recipe.teacher.checkpoint == own.parent / "teacher.pt"
    assert recipe.teacher.distillation.temperature == 2
    assert recipe.teacher.distillation.attention == (("conv2", "layer1"),)
    assert recipe.removed_channels == 0.25 and recipe.low_rank == LowRankConfig(layers=("conv2",), budget=0.5)
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("description", "desription", "no key 'desription'.*did you mean 'description'"),
        ("epochs: 2", "epoch: 2", "training configuration has a key 'epoch'.*did you mean 'epochs'"),
        ("bits: 3", "bit: 3", "no key 'bit'.*did you mean 'bits'"),
        ("bits: 3", "bits: 9", "bits is 9"),
        ("method: dgms", "method: dgm", "quantization method is 'dgm'.*did you mean 'dgms'"),
        ("{sparsity: 0.5}", "{sparsity: 1.2}", "sparsity is 1.2"),
        ("temperature: 2", "temperature: hot", "the temperature is 'hot'"),
        ("temperature: 2", "features: [conv1]", "features is .*pairs of a student's and a teacher's layer"),
        ("temperature: 2", "temprature: 2", "teacher has no key 'temprature'.*did you mean 'temperature'"),
        ("removed_channels: 0.25", "removed_channels: 1", "removed_channels is 1.*above 0, below 1"),
        ("budget: 0.5", "budgte: 0.5", "no key 'budgte'.*did you mean 'budget'"),
        ("budget: 0.5", "budget: 1.5", "budget is 1.5"),
        (", budget: 0.5", "", "neither energy nor budget"),
        ("data: digits", "data: digit", "unknown data set 'digit'.*did you mean 'digits'"),
        ("model: digits", "model:", "does not say its model"),
        ("model: resnet20, ", "", "teacher's model is None"),
        ("training: {epochs: 2, learning_rate: 1e-3}", "", "a teacher, and neither training nor pruning"),
        ("bits: 3, sparsity: {sparsity: 0.5}}", "bits: 3}\npruning: {epochs: 1}", "pruning without a sparsity"),
        ("checkpoint: weights/float.pt", "calibration_images: 0", "calibration_images is 0"),
        ("training: {", "training: {{", "is no YAML"),
        (SMALL, "- a\n- b\n", "recipe is .*a mapping"),
    ],
)
def test_what_is_wrong_is_named(own, before, after, message):
    assert before in SMALL
    own.write_text(SMALL.replace(before, after))
    with pytest.raises(SparrowError) as caught:
        read_recipe(str(own))
    text = f"{caught.value.got} {caught.value.expected}"
    assert "own.yaml" in text and re.search(message, text), text


def test_unknown_recipes(tmp_path):
    with pytest.raises(SparrowError, match="unknown recipe 'resnet20-dgms5'") as caught:
        read_recipe("resnet20-dgms5")
    assert "resnet20-dgms4" in caught.value.expected
    with pytest.raises(SparrowError, match="there is no file"):
        read_recipe(str(tmp_path / "none.yaml"))


def test_changes_are_named_by_key():
    recipe = read_recipe("resnet20-dgms4-block50")
    assert recipe.pruning is not None and recipe.teacher is not None
    other = dataclasses.replace(recipe, pruning=dataclasses.replace(recipe.pruning, epochs=3), teacher=None)
    changed = changed_keys(recipe.to_dict(), other.to_dict())
    assert f"pruning.epochs: {recipe.pruning.epochs}, now 3" in changed
    assert any(text.startswith("teacher.model: resnet56, now not set") for text in changed)
    assert changed_keys(recipe.to_dict(), recipe.to_dict()) == []
    plain = read_recipe("resnet20-dgms4").to_dict()
    older = {key: value for key, value in plain.items() if key not in ("low_rank", "pruning", "removed_channels")}
    assert changed_keys(older, plain) == []

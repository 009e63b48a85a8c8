"""The search for mixed precision and density in one folder; what is done is kept, and not done again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cattrs
import torch
from torch import nn

from sparrow.benchmarks.harness import verify
from sparrow.benchmarks.result_files import read_environment, read_result, write_result
from sparrow.benchmarks.searching import LayerChoice, LayerCosts, SearchPoint, SearchResult, layer_costs
from sparrow.deploy.bundle import is_bundle
from sparrow.deploy.cli.job_folder import JobFiles, fingerprint, open_job
from sparrow.deploy.compiler import compile_model
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file
from sparrow.quantize.api import calibrate, make_pruner, quantize_
from sparrow.quantize.checkpoint import load_checkpoint
from sparrow.quantize.configs import QuantizeConfig
from sparrow.quantize.data import ImageData
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.recipes import calibration_batches, export_checkpoint, load_float_network, quantize_network
from sparrow.quantize.search import (
    Allocation,
    Setting,
    cheapest_within,
    choice_config,
    frontier,
    measure_sensitivity,
    searchable_layers,
    uniform_choice,
)
from sparrow.quantize.train import TrainConfig, evaluate, resume_path

Tell = Callable[[str], None]

VERIFIED_IMAGES = 256


@dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Attributes:
        text: As it was typed.
        kind: ``latency`` or ``bytes``.
        limit: Milliseconds, or bytes of packed weights.
        soc: System on chip that the latency is predicted for; empty to predict none.
        affinity: Cores that threads are placed on.
        threads: Number of threads.
    """

    text: str
    kind: str
    limit: float
    soc: str
    affinity: str = "big"
    threads: int = 1


@dataclass(frozen=True)
class SearchOptions:
    """How a search goes about it.

    Attributes:
        settings: What each layer may get.
        images: Training images that sensitivities are measured on, and that activations' ranges are chosen by.
        trial_images: Test images that points of the frontier are tried on, without training.
        trial_points: How many points are tried.
        target: Core or architecture to compile for.
        seed: Seed of the choice of images, and of fresh layers.
    """

    settings: tuple[Setting, ...]
    images: int = 256
    trial_images: int = 1000
    trial_points: int = 9
    target: str = "cortex-a76"
    seed: int = 0


@dataclass(frozen=True)
class SearchFiles(JobFiles):
    """Where a search keeps what it makes."""

    @property
    def record(self) -> Path:
        """What was asked for."""
        return self.folder / "search.yaml"

    @property
    def costs(self) -> Path:
        """What layers cost, one file a setting."""
        return self.folder / "costs"

    @property
    def sensitivity(self) -> Path:
        """What settings do to the outputs, by layer."""
        return self.folder / "sensitivity.json"

    @property
    def result(self) -> Path:
        """Every point of the frontier, and what became of the chosen one."""
        return self.folder / "search.json"

    def made(self) -> Iterator[Path]:
        """Everything but the record."""
        yield from (self.costs, self.sensitivity, self.checkpoint, resume_path(self.checkpoint), self.onnx)
        yield from (self.bundle, self.verification, self.result)


def run_search(
    model_name: str,
    checkpoint: Path,
    data: ImageData,
    budget: Budget,
    options: SearchOptions,
    train_config: TrainConfig | None,
    folder: Path,
    *,
    teacher: tuple[str, Path] | None = None,
    log_dir: Path | None = None,
    restart: bool = False,
    jobs: int = 1,
    on_stage: Tell = lambda stage: None,
) -> SearchResult:
    """Choose bits and block sparsity for each layer, fine-tune and compile; or go on where an earlier run stopped.

    One bundle for each setting, with all layers alike, gives what every layer costs at it.

    Args:
        model_name: A registered network or ``path/to/file.py:factory``.
        checkpoint: Its trained float weights.
        data: Data set.
        budget: What it may cost.
        options: How to go about it.
        train_config: How the chosen network is fine-tuned, ``None`` for not at all.
        folder: Where the results go.
        teacher: Model name and checkpoint of a float network to learn from while fine-tuning.
        log_dir: Folder for a TensorBoard log of the fine-tuning.
        restart: Whether earlier results in the folder are thrown away.
        jobs: Emulators at a time.
        on_stage: Called with the name of each stage as it starts.

    Raises:
        SparrowError: The budget cannot be met, the folder holds another search, or a stage failed.
    """
    files = SearchFiles(folder)
    model = load_float_network(model_name, data, checkpoint, options.seed).eval()
    names = searchable_layers(model)
    document = {
        "model": model_name, "checkpoint": fingerprint(checkpoint), "data": data.name, "budget": asdict(budget),
        "options": asdict(options) | {"settings": [str(setting) for setting in options.settings]},
        "training": json.loads(train_config.to_json()) if train_config else None,
        "teacher": f"{teacher[0]}, {fingerprint(teacher[1])}" if teacher else None,
    }  # fmt: skip
    open_job(files.record, document, files.made(), restart=restart)
    if files.result.exists():
        on_stage("all done before")
        result: SearchResult = read_result(files.result)
        return result
    blocks = {name: _blocks(model.get_submodule(name)) for name in names}
    images = calibration_batches(data, options.images, options.seed)

    def candidate(choice: Mapping[str, Setting]) -> nn.Module:
        network = load_float_network(model_name, data, checkpoint, options.seed).eval()
        return _quantized(network, choice_config(choice, blocks), images)

    tables = {setting: _costs(files, candidate, names, setting, data, budget, options, on_stage)
              for setting in options.settings}  # fmt: skip
    losses = _sensitivity(files, model, images, names, options.settings, on_stage)
    points = frontier(losses, {name: {s: _cost(tables[s], name, budget) for s in options.settings} for name in names})
    anchor = tables[options.settings[0]]
    fixed = _cost_of_others(anchor, names, budget)
    chosen = cheapest_within(points, budget.limit, fixed=fixed, unit="ms" if budget.kind == "latency" else "bytes")
    top1 = _try_points(points, chosen, candidate, data, options, on_stage)
    config = choice_config(points[chosen].choice, blocks)
    if not files.checkpoint.exists():
        on_stage("fine-tuning" if train_config else "quantization")
        quantize_network(model_name, data, checkpoint, config, train_config, files.checkpoint, teacher=teacher,
                         seed=options.seed, calibration_images=max(options.images, 1024), log_dir=log_dir)  # fmt: skip
    costs = _deploy(files, model_name, data, budget, options, jobs, on_stage)
    report = json.loads(load_checkpoint(files.checkpoint)["report"])
    result = SearchResult(
        bundle=model_name if ":" not in model_name else "own network",
        data=data.name, budget=budget.text, soc=budget.soc, affinity=budget.affinity, threads=budget.threads,
        images=min(options.trial_images, len(data.test_labels)), float_top1=_top1(model, data, options.trial_images),
        points=tuple(_point(point, tables, names, anchor, top1.get(at)) for at, point in enumerate(points)),
        chosen=chosen, final_top1=report["test_accuracy"] / 100,
        final_bytes=costs.other_bytes + sum(costs.packed_bytes.values()),
        final_milliseconds=_total_milliseconds(costs), fine_tuning_epochs=train_config.epochs if train_config else 0,
        environment=read_environment(options.target),
    )  # fmt: skip
    write_result(result, files.result)
    return result


def _blocks(layer: nn.Module) -> int:
    out_channels, in_channels, *kernel = layer.get_parameter("weight").shape
    return -(-out_channels // 4) * -(-in_channels // 4) * int(torch.tensor(kernel).prod())


def _quantized(model: nn.Module, config: QuantizeConfig, images: Sequence[torch.Tensor]) -> nn.Module:
    """Quantize, prune and calibrate without training."""
    quantized = quantize_(model, config)
    if (pruner := make_pruner(quantized, config, 0)) is not None:
        pruner.step(0)
    calibrate(quantized.eval(), images, config)
    return quantized


def _costs(
    files: SearchFiles,
    candidate: Callable[[Mapping[str, Setting]], nn.Module],
    names: Sequence[str],
    setting: Setting,
    data: ImageData,
    budget: Budget,
    options: SearchOptions,
    on_stage: Tell,
) -> LayerCosts:
    """What each layer costs when all have one setting."""
    path = files.costs / f"{setting.bits}-bits-{100 * setting.sparsity:g}.json"
    if path.exists():
        return cattrs.structure(json.loads(path.read_text(encoding="utf-8")), LayerCosts)
    on_stage(f"compiling and predicting all layers at {setting}")
    files.costs.mkdir(exist_ok=True)
    onnx, bundle = path.with_suffix(".onnx"), path.with_suffix("")
    export_onnx(candidate(uniform_choice(names, setting)), data.image_shape, onnx, {})
    compile_model(onnx, bundle, target=options.target, name="candidate")
    costs = layer_costs(bundle, budget.soc or None, affinity=budget.affinity, threads=budget.threads)
    if missing := [name for name in names if name not in costs.packed_bytes]:
        raise SparrowError(f"the compiler merged or renamed the layer {missing[0]}",
                           expected="each layer as one operator of the bundle")  # fmt: skip
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(costs), indent=2) + "\n", encoding="utf-8")
    return costs


def _sensitivity(
    files: SearchFiles,
    model: nn.Module,
    images: Sequence[torch.Tensor],
    names: Sequence[str],
    settings: Sequence[Setting],
    on_stage: Tell,
) -> dict[str, dict[Setting, float]]:
    """Losses by layer and setting; each layer is written when it is measured."""
    stored: dict[str, list[float]] = {}
    if files.sensitivity.exists():
        stored = json.loads(files.sensitivity.read_text(encoding="utf-8"))

    def keep(name: str, losses: Mapping[Setting, float]) -> None:
        stored[name] = [losses[setting] for setting in settings]
        with atomic_file(files.sensitivity) as temporary:
            temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        on_stage(f"sensitivity: {len(stored)} of {len(names)} layers")

    known = {name: dict(zip(settings, losses, strict=True)) for name, losses in stored.items()}
    return measure_sensitivity(model, images, names, settings, known=known, on_layer=keep)


def _cost(costs: LayerCosts, name: str, budget: Budget) -> float:
    if budget.kind == "bytes" or costs.milliseconds is None:
        return costs.packed_bytes[name]
    return costs.milliseconds[name]


def _cost_of_others(costs: LayerCosts, names: Sequence[str], budget: Budget) -> float:
    """What is spent whatever the searched layers get."""
    others = [name for name in costs.packed_bytes if name not in names]
    unnamed = costs.other_bytes if budget.kind == "bytes" else costs.other_milliseconds or 0.0
    return unnamed + sum(_cost(costs, name, budget) for name in others)


def _total_milliseconds(costs: LayerCosts) -> float | None:
    if costs.milliseconds is None or costs.other_milliseconds is None:
        return None
    return sum(costs.milliseconds.values()) + costs.other_milliseconds


def _point(
    point: Allocation,
    tables: Mapping[Setting, LayerCosts],
    names: Sequence[str],
    anchor: LayerCosts,
    top1: float | None,
) -> SearchPoint:
    def layers(of: Callable[[LayerCosts], Mapping[str, float]]) -> float:
        chosen = sum(of(tables[setting])[name] for name, setting in point.choice.items())
        return chosen + sum(cost for name, cost in of(anchor).items() if name not in names)

    milliseconds = None
    if anchor.milliseconds is not None and anchor.other_milliseconds is not None:
        milliseconds = layers(lambda costs: costs.milliseconds or {}) + anchor.other_milliseconds
    size = round(layers(lambda costs: costs.packed_bytes)) + anchor.other_bytes
    choice = {name: LayerChoice(setting.bits, setting.sparsity) for name, setting in point.choice.items()}
    return SearchPoint(choice, point.loss, size, milliseconds, top1)


def _try_points(
    points: Sequence[Allocation],
    chosen: int,
    candidate: Callable[[Mapping[str, Setting]], nn.Module],
    data: ImageData,
    options: SearchOptions,
    on_stage: Tell,
) -> dict[int, float]:
    """Share of correct answers of some points, spread evenly, the chosen one among them."""
    last, count = len(points) - 1, min(options.trial_points, len(points))
    tried = sorted({round(last * at / max(1, count - 1)) for at in range(count)} | {chosen})
    top1 = {}
    for number, at in enumerate(tried, 1):
        on_stage(f"accuracy without training: point {number} of {len(tried)}")
        top1[at] = _top1(candidate(points[at].choice), data, options.trial_images)
    return top1


def _top1(model: nn.Module, data: ImageData, count: int) -> float:
    few = replace(data, test_images=data.test_images[:count], test_labels=data.test_labels[:count])
    return evaluate(model, few) / 100


def _deploy(
    files: SearchFiles,
    model_name: str,
    data: ImageData,
    budget: Budget,
    options: SearchOptions,
    jobs: int,
    on_stage: Tell,
) -> LayerCosts:
    """Compile and verify the chosen network, and predict what it costs by itself."""
    on_stage("compiling and verifying the chosen network")
    if not files.onnx.exists():
        export_checkpoint(files.checkpoint, files.onnx, model_name=model_name)
    if not is_bundle(files.bundle):
        compile_model(files.onnx, files.bundle, target=options.target)
    images, labels = data.split("test")
    chosen = slice(VERIFIED_IMAGES)
    verified = verify(files.bundle, data.normalize(images[chosen]), labels[chosen], cpu=options.target, jobs=jobs)
    write_result(verified, files.verification)
    verified.require_ok()
    return layer_costs(files.bundle, budget.soc or None, affinity=budget.affinity, threads=budget.threads)

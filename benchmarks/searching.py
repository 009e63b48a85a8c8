"""What a search for mixed precision and density found, and what the layers of its candidates cost."""

from dataclasses import dataclass, field
from pathlib import Path

from sparrow.benchmarks.predicting import predict_bundle
from sparrow.benchmarks.result_files import Environment
from sparrow.deploy.bundle import load_bundle


@dataclass(frozen=True)
class LayerCosts:
    """What each layer of a bundle costs; the times are predictions.

    Attributes:
        packed_bytes: Bytes of each layer's packed weights.
        other_bytes: Bytes of all other weights.
        milliseconds: Predicted time of each layer; ``None`` where nothing was predicted.
        other_milliseconds: Predicted time of everything else.
    """

    packed_bytes: dict[str, int]
    other_bytes: int
    milliseconds: dict[str, float] | None
    other_milliseconds: float | None


def layer_costs(bundle_dir: Path, soc: str | None, *, affinity: str = "big", threads: int = 1) -> LayerCosts:
    """Read and predict what the layers of a bundle cost.

    Args:
        bundle_dir: Bundle folder.
        soc: System on chip to predict times for; ``None`` to predict nothing.
        affinity: Cores that threads are placed on, as ``predict_bundle`` takes it.
        threads: Number of threads.

    Raises:
        SparrowError: The bundle is damaged, the SoC is unknown, or a tool that predictions need is missing.
    """
    manifest = load_bundle(bundle_dir).manifest
    packed = {layer["name"]: int(layer["packed_bytes"]) for layer in manifest["layers"]}
    other_bytes = int(manifest["weights_bytes"]) - sum(packed.values())
    if soc is None:
        return LayerCosts(packed, other_bytes, None, None)
    (prediction,) = predict_bundle(bundle_dir, soc, affinity=affinity, threads=(threads,)).predictions
    times = {operator.name: operator.milliseconds for operator in prediction.operators if operator.name in packed}
    return LayerCosts(packed, other_bytes, times, prediction.milliseconds - sum(times.values()))


@dataclass(frozen=True)
class LayerChoice:
    """What one layer gets.

    Attributes:
        bits: 8 for int8 weights, else a codebook of 2^bits values.
        sparsity: Share of its 4 x 4 blocks that are zero.
    """

    bits: int
    sparsity: float


@dataclass(frozen=True)
class SearchPoint:
    """One choice for all layers, on the frontier of loss and cost.

    Attributes:
        layers: What each layer gets.
        divergence: Sum of the layers' divergences from the float network's outputs, in nats, before any training.
        weights_bytes: Bytes of all packed weights, the sum of the layers'.
        milliseconds: Predicted latency, the sum of the layers'; ``None`` where none was predicted.
        top1: Share of correct answers before any training; ``None`` where it was not tried.
    """

    layers: dict[str, LayerChoice]
    divergence: float
    weights_bytes: int
    milliseconds: float | None
    top1: float | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Its times are predictions, no measurements.

    Attributes:
        bundle: Name of the network.
        data: Name of the data set.
        budget: What was asked for, as typed.
        soc: System on chip that the latency is predicted for; empty where none was.
        affinity: Cores that threads were placed on.
        threads: Number of threads.
        images: Test images that each point's ``top1`` was found on.
        float_top1: Share of correct answers of the float network, on the same images.
        points: The frontier, from the least loss to the least cost.
        chosen: Place of the chosen one.
        final_top1: Share of correct answers of the chosen one on all test images, after its fine-tuning.
        final_bytes: Bytes of the packed weights of its bundle.
        final_milliseconds: Predicted latency of its bundle.
        fine_tuning_epochs: Epochs of its fine-tuning.
        environment: What it was got with.
    """

    bundle: str
    data: str
    budget: str
    soc: str
    affinity: str
    threads: int
    images: int
    float_top1: float
    points: tuple[SearchPoint, ...]
    chosen: int
    final_top1: float
    final_bytes: int
    final_milliseconds: float | None
    fine_tuning_epochs: int
    environment: Environment
    schema: str = field(default="sparrow-search", init=False)
    schema_version: int = field(default=1, init=False)

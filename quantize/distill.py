"""Distillation: a student learns from a larger, trained network.

It learns from the teacher's outputs (Hinton et al., arXiv 1503.02531), and from what is inside: features, which a 1x1
convolution translates where the channels differ (FitNets, Romero et al., arXiv 1412.6550), and maps of where in the
image activations are strong (attention transfer, Zagoruyko and Komodakis, arXiv 1612.03928).
"""

import dataclasses
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.config_values import is_number, is_share

# Images and logits and classes -> the loss to minimize.
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

# A layer of the student and one of the teacher.
LayerPairs = tuple[tuple[str, str], ...]

_IMAGES_DIM = 4
_REGRESSORS = "distillation_regressors"


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """How much a student listens to its teacher.

    Attributes:
        weight: Share of the teacher's outputs in the loss, above 0 to 1; the labels have the rest.
        temperature: Softens both outputs, so that the teacher's small probabilities are heard as well.
        features: Pairs of a student's and a teacher's layer whose outputs are to agree.
        feature_weight: Weight of the features' mean squared error, added to the loss.
        attention: Pairs of layers whose attention maps are to agree; their channels may differ.
        attention_weight: Weight of the maps' squared distance, added to the loss.

    Raises:
        SparrowError: A value is out of range or of another type.
    """

    weight: float = 0.7
    temperature: float = 4.0
    features: LayerPairs = ()
    feature_weight: float = 1.0
    attention: LayerPairs = ()
    attention_weight: float = 10.0

    def __post_init__(self) -> None:
        if not (is_share(self.weight) and self.weight > 0):
            raise SparrowError(f"the teacher's weight is {self.weight!r}", expected="above 0, at most 1")
        for name in ("temperature", "feature_weight", "attention_weight"):
            if not (is_number(value := getattr(self, name)) and value > 0):
                raise SparrowError(f"the {name.replace('_', ' ')} is {value!r}", expected="a number above 0")
        for name in ("features", "attention"):
            pairs = getattr(self, name)
            if not (isinstance(pairs, tuple) and all(map(_is_pair, pairs))):
                raise SparrowError(f"{name} is {pairs!r}", expected="pairs of a student's and a teacher's layer")


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(name, str) for name in value)


def distillation_loss(
    teacher: nn.Module,
    config: DistillConfig,
    *,
    student: nn.Module | None = None,
    image_shape: tuple[int, ...] = (),
) -> LossFunction:
    """Make a loss of a teacher.

    (1 - w) cross-entropy(student, label) + w T² KL(softmax(teacher / T) ‖ softmax(student / T)), and what the layers'
    pairs add; the factor T² keeps the second gradient as large as the first.

    Where a pair of features differs in channels, a trainable 1x1 convolution is added to the student, so that it is
    optimized, saved and resumed with it; :func:`release_student` takes it off again.

    Args:
        teacher: Trained network; it is put into evaluation mode.
        config: Weight w, temperature T, and pairs of layers.
        student: Network that is trained; needed for pairs of layers.
        image_shape: Shape of one image; needed for pairs of layers.

    Returns:
        A function of images [n, channels, height, width], the student's logits [n, classes] and labels [n].

    Raises:
        SparrowError: A network lacks a layer, or the places of a pair's outputs differ in number.
    """
    teacher.eval().requires_grad_(False)
    teacher = teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pairs = None if student is None else _LayerLosses(teacher, student, config, image_shape)

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        # On a GPU, half precision moves the teacher's logits by less than its own errors, and halves its time; most
        # CPUs are slower with it.
        on_gpu = images.device.type == "cuda"
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=on_gpu):
            expected = teacher(images).float()
        if expected.shape != logits.shape:
            raise SparrowError(f"the teacher gives {expected.shape[1]} classes, the student {logits.shape[1]}",
                               expected="a teacher of the same classes", next_step="choose another one")  # fmt: skip
        temperature = config.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1),
            functional.log_softmax(expected / temperature, dim=1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        labelled = functional.cross_entropy(logits, labels)
        total = (1 - config.weight) * labelled + config.weight * temperature**2 * divergence
        return total if pairs is None else total + pairs()

    return loss


def release_student(student: nn.Module) -> None:
    """Take off what :func:`distillation_loss` added to a student."""
    if isinstance(regressors := getattr(student, _REGRESSORS, None), _Regressors):
        for hook in regressors.hooks:
            hook.remove()
        delattr(student, _REGRESSORS)


def attention_map(features: Tensor) -> Tensor:
    """Where activations are strong: the mean square over channels, each image's map of length one.

    Args:
        features: [n, channels, height, width].

    Returns:
        [n, height * width].
    """
    return functional.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def describe_teacher(teacher: nn.Module, config: DistillConfig) -> str:
    """A text that differs for other weights or another configuration, to compare trainings by."""
    digest = hashlib.sha256()
    for tensor in teacher.state_dict().values():
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    text = f"{digest.hexdigest()[:16]}, weight {config.weight:g}, temperature {config.temperature:g}"
    for kind, pairs, weight in (("features", config.features, config.feature_weight),
                                ("attention", config.attention, config.attention_weight)):  # fmt: skip
        if pairs:
            text += f", {kind} {' '.join('='.join(pair) for pair in pairs)} weight {weight:g}"
    return text


class _Regressors(nn.ModuleList):
    """What a student carries while it learns from a teacher's layers: one module for each pair of features."""

    hooks: tuple[RemovableHandle, ...] = ()


class _LayerLosses:
    """Losses of pairs of layers, from the outputs that hooks saw last."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, config: DistillConfig, image_shape: tuple[int, ...]
    ) -> None:
        self._config, self._student = config, student
        pairs = (*config.features, *config.attention)
        self._seen_student, hooks = _watch(student, "student", {pair[0] for pair in pairs})
        self._seen_teacher, _ = _watch(teacher, "teacher", {pair[1] for pair in pairs})
        if not pairs:
            return
        was_training = student.training
        with torch.no_grad():
            for network in (student.eval(), teacher):
                network(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
        student.train(was_training)
        regressors = _Regressors()
        regressors.hooks = hooks
        for pair in pairs:
            learned, known = self._outputs(pair)
            if learned.shape[2:] != known.shape[2:] or learned.dim() != _IMAGES_DIM:
                raise SparrowError(
                    f"the student's {pair[0]} gives {_size(learned)} and the teacher's {pair[1]} {_size(known)}",
                    expected="a pair of layers whose outputs have the same height and width",
                    next_step="choose layers of the same stage",
                )
            if pair in config.features and learned.shape[1] != known.shape[1]:
                regressors.append(nn.Conv2d(learned.shape[1], known.shape[1], 1, bias=False).to(learned.device))
            elif pair in config.features:
                regressors.append(nn.Identity())
        student.add_module(_REGRESSORS, regressors)

    def __call__(self) -> Tensor:
        total = torch.zeros(())
        for pair, regressor in zip(self._config.features, getattr(self._student, _REGRESSORS, ()), strict=False):
            learned, known = self._outputs(pair)
            total = total + self._config.feature_weight * functional.mse_loss(regressor(learned), known)
        for pair in self._config.attention:
            learned, known = (attention_map(features) for features in self._outputs(pair))
            total = total + self._config.attention_weight * (learned - known).square().sum(dim=1).mean()
        return total

    def _outputs(self, pair: tuple[str, str]) -> tuple[Tensor, Tensor]:
        return self._seen_student[pair[0]].float(), self._seen_teacher[pair[1]].float()


def _size(features: Tensor) -> str:
    return "x".join(map(str, features.shape[1:]))


def _watch(network: nn.Module, role: str, names: set[str]) -> tuple[dict[str, Tensor], tuple[RemovableHandle, ...]]:
    """Keep the last output of layers; returns where it is kept, and the hooks that do it."""
    seen: dict[str, Tensor] = {}
    hooks = []
    modules = dict(network.named_modules())
    # A traced network runs its innermost modules alone: a block's output is that of the last of them.
    running = [str(node.target) for node in network.graph.nodes] if isinstance(network, GraphModule) else list(modules)
    for name in names:
        inside = [target for target in running if target in modules and f"{target}.".startswith(f"{name}.")]
        if name not in modules or not inside:
            raise SparrowError(f"the {role} has no layer {name!r}", expected=near_names(name, modules),
                               next_step="name a layer that runs, such as the last of a stage")  # fmt: skip
        last = name if name in running else inside[-1]

        def keep(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            seen[name] = output

        hooks.append(modules[last].register_forward_hook(keep))
    return seen, tuple(hooks)

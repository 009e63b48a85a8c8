"""Training and evaluation of image classifiers: reproducible, and resumable at any moment.

* ``TrainConfig``: how to train; goes to JSON and back.
* ``train``: SGD with momentum under a one-cycle learning rate. Float networks and quantized ones train alike.
* ``evaluate``, ``predict_logits``: top-1 accuracy and raw outputs.
* ``resume_path``: where an unfinished training is kept.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.checkpoint import load_checkpoint, save_checkpoint
from sparrow.quantize.config_values import is_number, is_whole
from sparrow.quantize.data import ImageData, batches, prefetched, steps_per_epoch, training_batches
from sparrow.quantize.data.images import Split
from sparrow.quantize.distill import LossFunction
from sparrow.quantize.processes import DEVICES, Processes, join_processes

RESUME_FORMAT = "sparrow-resume-1"
SAVE_SECONDS = 60.0  # a kill costs at most this much work
PLAIN_LINE_SECONDS = 30.0
BAR_SECONDS = 0.2
LOG_SECONDS = 1.0  # between two entries of the TensorBoard log
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        learning_rate: Peak of the one-cycle schedule.
        momentum: Momentum of SGD, constant.
        weight_decay: L2 penalty, for parameter groups that do not set their own.
        warmup_share: Share of all steps in which the learning rate rises.
        seed: Decides the order of the images, their augmentation and dropout.
        threads: CPU threads of PyTorch; ``None`` leaves its setting. Sums depend on it, so equal results to the last
            bit need equal threads.
        device: ``cpu``, ``cuda``, or ``auto``: a CUDA device if there is one.
        precision: ``float32``, or ``bfloat16`` to compute in on CUDA where autocast allows; weights stay float32.

    Raises:
        SparrowError: A value is out of range.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_share: float = 0.3
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    precision: str = "float32"

    VERSION: ClassVar[int] = 1  # of the JSON form

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[bool, str]] = {
            "epochs": (is_whole(self.epochs) and self.epochs >= 1, "a whole number from 1"),
            "batch_size": (is_whole(self.batch_size) and self.batch_size >= 1, "a whole number from 1"),
            "learning_rate": (is_number(self.learning_rate) and self.learning_rate > 0, "a number above 0"),
            "momentum": (is_number(self.momentum) and 0 <= self.momentum < 1, "a number from 0 to 1, below 1"),
            "weight_decay": (is_number(self.weight_decay) and self.weight_decay >= 0, "a number from 0"),
            "warmup_share": (is_number(self.warmup_share) and 0 <= self.warmup_share <= 1, "a number from 0 to 1"),
            "seed": (is_whole(self.seed) and 0 <= self.seed < 2**63, "a whole number from 0 to below 2^63"),
            "threads": (self.threads is None or (is_whole(self.threads) and self.threads > 0), "a whole number from 1"),
            "device": (self.device in DEVICES, ", ".join(DEVICES)),
            "precision": (self.precision in PRECISIONS, ", ".join(PRECISIONS)),
        }
        for name, (valid, expected) in ranges.items():
            if not valid:
                raise SparrowError(f"{name} is {getattr(self, name)!r}", expected=expected)

    def to_json(self) -> str:
        """Write the configuration as one JSON object with its version."""
        return json.dumps({"version": self.VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Read what ``to_json`` wrote; a missing key takes its default.

        Raises:
            SparrowError: The text is no JSON object, its version is another, a key is unknown or a value out of range.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SparrowError(f"the training configuration is no JSON: {error}",
                               expected="what to_json wrote") from error  # fmt: skip
        if not isinstance(content, dict) or content.get("version") != cls.VERSION:
            raise SparrowError(
                f"the training configuration has no version {cls.VERSION}: {text[:80]}",
                expected=f'a JSON object with "version": {cls.VERSION}',
                next_step="write it anew with this release of Sparrow",
            )
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, of: str = "training") -> "TrainConfig":
        """Build a configuration from the keys of its JSON form; a missing key takes its default.

        Args:
            content: The keys and their values; a version may be among them.
            of: What it configures, for messages.

        Raises:
            SparrowError: The version is another, a key is unknown or a value out of range.
        """
        known = ["version", *(field.name for field in dataclasses.fields(cls))]
        for key in content:
            if key not in known:
                raise SparrowError(f"the {of} configuration has a key {key!r}", expected=near_names(key, known))
        values = dict(content)
        if (version := values.pop("version", cls.VERSION)) != cls.VERSION:
            raise SparrowError(f"the {of} configuration has version {version!r}", expected=f"version {cls.VERSION}")
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean loss over the training images.
        train_accuracy: Top-1 percent on them, as they passed.
        test_accuracy: Top-1 percent on the test images, after the epoch.
        seconds: Time it took, test included.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes:
        history: One record an epoch.
        resumed: Whether it went on from an earlier, unfinished run.
    """

    history: tuple[EpochRecord, ...]
    resumed: bool

    @property
    def test_accuracy(self) -> float:
        """Top-1 percent on the test images after the last epoch."""
        return self.history[-1].test_accuracy


def one_cycle(step: int, total_steps: int, warmup_share: float = 0.3) -> float:
    """Learning rate of a step as a share of its peak (Smith and Topin, arXiv 1708.07120, with cosine sides).

    It rises from 1/25 to 1 and falls to 1/250,000. A function of the step alone, so that resuming needs no state.

    Args:
        step: Step, from 0.
        total_steps: Number of steps of the training.
        warmup_share: Share of them that rises.

    Returns:
        A factor above 0 and at most 1.
    """
    peak = warmup_share * (total_steps - 1)
    if step < peak:
        start, end, progress = 1 / 25, 1.0, step / peak
    else:
        start, end, progress = 1.0, 1 / 250_000, (step - peak) / max(1.0, total_steps - 1 - peak)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def resume_path(checkpoint_path: Path) -> Path:
    """The file beside a checkpoint that keeps its unfinished training; to be removed once the checkpoint is written."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}.resume")


def train(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    checkpoint_path: Path,
    parameters: Sequence[Mapping[str, Any]] | None = None,
    loss_function: LossFunction = lambda images, logits, labels: nn.functional.cross_entropy(logits, labels),
    on_step: Callable[[int], None] | None = None,
    sparsity: Callable[[], float] | None = None,
    job: Mapping[str, str] | None = None,
    log_dir: Path | None = None,
    restart: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a network in place with SGD and a one-cycle learning rate.

    The state is written to ``resume_path(checkpoint_path)`` at the start, every minute and after each epoch. The same
    call after a kill or Ctrl-C, with a model that starts from the same weights, goes on there and ends with the same
    weights to the last bit. The file stays after the last epoch, so that nothing is lost before the caller has written
    the checkpoint itself and removes it.

    In the processes of ``torchrun``, each takes its part of every batch, and all end with the same weights; the first
    writes and shows. Batch norm takes each part's own statistics, and its running ones are averaged.

    Args:
        model: Network for images of ``data``; its output is [n, classes or more]. It is on the CPU again afterwards.
        data: Data set.
        config: How to train.
        checkpoint_path: Where the caller will put the result; its folder must exist.
        parameters: Parameter groups as ``torch.optim.SGD`` takes them; ``lr`` is a group's own peak learning rate. By
            default all parameters are one group.
        loss_function: Loss of a batch from its images, the network's logits and the labels; cross-entropy by default.
        on_step: Called with the number of steps done after each step; it may change buffers of the network.
        sparsity: Gives the share of the weights that are zero, 0 to 1, to be shown.
        job: What else has to be equal for the training to be resumed, by name, such as what ``loss_function`` does.
        log_dir: Folder for a TensorBoard log of loss, accuracy, learning rate and sparsity.
        restart: Whether an unfinished training is thrown away.
        progress: Whether progress is shown on stderr.

    Returns:
        The course of the training; the model holds the last weights.

    Raises:
        SparrowError: The network does not fit the data, or the data have one class; the unfinished training is another
            one or damaged; the loss or a parameter became NaN or infinite, or the memory does not suffice (the last
            good state stays on disk); the state cannot be written; or a device or TensorBoard is missing.
    """
    check_fits(model, data)
    if len(np.unique(data.train_labels)) < 2:
        raise SparrowError(f"all {len(data.train_labels)} training images of {data.name} are of one class",
                           expected="images of two classes or more",
                           next_step="add images of another class, or choose another --data")  # fmt: skip
    groups = [dict(group) for group in parameters] if parameters is not None else [{"params": list(model.parameters())}]
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    position = _Position()
    steps = steps_per_epoch(data, config.batch_size)
    total_steps = steps * config.epochs
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes(config.device))
        if config.precision == "bfloat16" and processes.device.type != "cuda":
            raise SparrowError("the precision is bfloat16 on a CPU", expected="float32, or a CUDA device")
        whole_job = _describe_job(model, data, config, optimizer, processes) | dict(job or {})
        state = _ResumeFile(resume_path(checkpoint_path), model, optimizer, whole_job, processes)
        stack.enter_context(_on_device(model, processes.device))
        stack.enter_context(torch.random.fork_rng([processes.device] if processes.device.type == "cuda" else []))
        stack.enter_context(_torch_threads(config.threads))
        shown = progress and processes.rank == 0
        display = stack.enter_context(_Display(total_steps, shown, sparsity))
        stack.enter_context(_explaining_lack_of_memory(config, state.path))
        log = stack.enter_context(_Log(log_dir if processes.rank == 0 else None, sparsity))
        resumed = state.begin(position, restart=restart)
        if resumed:
            position = state.load()
        log.open(position.done(steps))
        network = _parallel(model, processes)
        last_save = time.monotonic()
        while position.epoch < config.epochs:
            model.train()
            lap = time.monotonic()
            for images, labels in prefetched(
                training_batches(
                    data, config.batch_size, seed=config.seed, epoch=position.epoch, first_step=position.step
                )
            ):
                done = position.done(steps)
                factor = one_cycle(done, total_steps, config.warmup_share)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                optimizer.zero_grad(set_to_none=True)
                # Dropout depends on the place in the training alone, in whichever process and after whichever break.
                torch.manual_seed(_step_seed(config.seed, position, processes.rank))
                own = slice(processes.rank, None, processes.count)
                inputs = _to_tensor(images[own]).to(processes.device)
                targets = torch.from_numpy(labels[own]).to(processes.device)
                with torch.autocast(processes.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    logits = network(inputs)
                    loss = loss_function(inputs, logits.float(), targets)
                correct = (logits.detach().argmax(1) == targets).sum()
                # The first process says when to save, for all have to average their buffers then.
                due = loss.new_tensor(processes.rank == 0 and time.monotonic() - last_save > SAVE_SECONDS)
                sums = torch.stack([loss.detach().double() * len(targets), correct.double(), due.double()])
                loss_sum, correct_sum, save_now = processes.sum(sums).tolist()
                if not math.isfinite(loss_sum):
                    raise _diverged(f"the loss became {loss_sum / len(labels)}", position, state.path)
                # The mean over the processes of what each weighs by its share of the batch is the batch's mean.
                (loss * (len(targets) * processes.count / len(labels))).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                position.step += 1
                position.images += len(labels)
                position.loss_sum += loss_sum
                position.correct += int(correct_sum)
                position.seconds += time.monotonic() - lap
                lap = time.monotonic()
                if on_step is not None:
                    on_step(done + 1)
                display.step(done + 1, position, config.learning_rate * factor)
                log.step(done + 1, position, config.learning_rate * factor)
                if save_now and position.step < steps:
                    _check_finite(model, position, state.path)
                    processes.average(model.buffers())
                    state.save(position)
                    last_save = time.monotonic()
            _check_finite(model, position, state.path)
            processes.average(model.buffers())
            accuracy = _shared_accuracy(model, data, processes)
            position.seconds += time.monotonic() - lap
            position = position.next_epoch(accuracy)
            display.epoch(position.history[-1], config.epochs)
            log.epoch(position.epoch * steps, position.history[-1])
            state.save(position)
            last_save = time.monotonic()
    return TrainResult(tuple(position.history), resumed)


def evaluate(model: nn.Module, data: ImageData, *, split: Split = "test", batch_size: int = 512) -> float:
    """Top-1 accuracy in percent.

    Args:
        model: Network.
        data: Data set.
        split: ``train`` or ``test``.
        batch_size: Images at a time.

    Returns:
        Percent from 0 to 100.

    Raises:
        SparrowError: The network does not fit the data, or the split is empty.
    """
    predicted = predict_logits(model, data, split=split, batch_size=batch_size).argmax(1).numpy()
    return float(np.mean(predicted == data.split(split)[1]) * 100)


def predict_logits(model: nn.Module, data: ImageData, *, split: Split = "test", batch_size: int = 512) -> Tensor:
    """Outputs of a network for a whole split, in evaluation mode.

    Args:
        model: Network; its mode is the old one afterwards.
        data: Data set.
        split: ``train`` or ``test``.
        batch_size: Images at a time.

    Returns:
        float32 [images, outputs].

    Raises:
        SparrowError: The network does not fit the data, or the split is empty.
    """
    check_fits(model, data)
    device = _device(model)
    with _evaluating(model):
        return torch.cat([model(_to_tensor(images).to(device)).cpu() for images, _ in batches(data, split, batch_size)])


def check_fits(model: nn.Module, data: ImageData) -> None:
    """Run one black image through a network.

    Raises:
        SparrowError: The network refuses its shape, or has fewer outputs than the data set has classes.
    """
    try:
        with _evaluating(model):
            output = model(_to_tensor(data.normalize(np.zeros((1, *data.image_shape), np.uint8))).to(_device(model)))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SparrowError(
            f"the network does not take an image of {data.name}, "
            f"{'x'.join(map(str, data.image_shape))}: {str(error).splitlines()[0] if str(error) else error!r}",
            expected="a network for images of this size",
            next_step="choose another --model or --data",
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < len(data.classes):
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise SparrowError(
            f"the network's output for one image of {data.name} has {found}",
            expected=f"a tensor of shape (1, {len(data.classes)}), one logit a class, or more",
            next_step="choose another --model or --data",
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _to_tensor(images: NDArray[np.float32]) -> Tensor:
    # Convolutions on x86 and ARM CPUs train about a quarter faster in this layout.
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def _on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    model.to(device)
    try:
        yield
    finally:
        model.cpu()


@contextmanager
def _explaining_lack_of_memory(config: TrainConfig, path: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has a class of its own for CUDA alone
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not lacking:
            raise
        raise SparrowError(
            f"there is not enough memory for {config.batch_size} images a step: {str(error).splitlines()[0]}",
            expected="memory for the network's activations and gradients",
            next_step=f"choose a smaller --batch-size and add --restart; the last good state is in {path}",
        ) from error


def _parallel(model: nn.Module, processes: Processes) -> nn.Module:
    """Let gradients be averaged over the processes; buffers are averaged when they are looked at."""
    if processes.count == 1:
        return model
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _shared_accuracy(model: nn.Module, data: ImageData, processes: Processes) -> float:
    """Top-1 percent on the test images, each process taking its batches."""
    correct = torch.zeros((), dtype=torch.float64, device=processes.device)
    with _evaluating(model):
        for index, (images, labels) in enumerate(batches(data, "test")):
            if index % processes.count == processes.rank:
                found = model(_to_tensor(images).to(processes.device)).argmax(1).cpu()
                correct += int((found == torch.from_numpy(labels)).sum())
    return float(processes.sum(correct)) / len(data.test_labels) * 100


def _step_seed(seed: int, position: "_Position", rank: int) -> int:
    return int(np.random.SeedSequence([seed, position.epoch, position.step, rank]).generate_state(1, np.uint64)[0] >> 1)


@dataclasses.dataclass
class _Position:
    """Where a training stands: epoch and step from 0, sums over the epoch so far, and the epochs before."""

    epoch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    history: list[EpochRecord] = dataclasses.field(default_factory=list)

    def done(self, steps: int) -> int:
        """Steps done, of so many an epoch."""
        return self.epoch * steps + self.step

    def next_epoch(self, test_accuracy: float) -> "_Position":
        record = EpochRecord(
            epoch=self.epoch + 1,
            loss=self.loss_sum / self.images,
            train_accuracy=100 * self.correct / self.images,
            test_accuracy=test_accuracy,
            seconds=self.seconds,
        )
        return _Position(epoch=self.epoch + 1, history=[*self.history, record])


@dataclasses.dataclass(frozen=True)
class _ResumeFile:
    """The state of a training on disk."""

    path: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    job: dict[str, str]
    processes: Processes

    def begin(self, position: _Position, *, restart: bool) -> bool:
        """Whether there is a state to go on from; if not, save the first one."""
        if self.processes.rank == 0 and restart:
            self.path.unlink(missing_ok=True)
        # All processes have to see the same before one of them writes.
        found = self.processes.sum(torch.tensor(float(self.processes.rank == 0 and self.path.exists())))
        if not found:
            self.save(position)
        return bool(found)

    def save(self, position: _Position) -> None:
        if self.processes.rank != 0:
            return
        content = {
            "format": RESUME_FORMAT,
            "job": self.job,
            "position": dataclasses.asdict(position),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(content, self.path)

    def load(self) -> _Position:
        next_step = f"add --restart to begin anew, or remove {self.path}"
        try:
            content = load_checkpoint(self.path)
            if content.get("format") != RESUME_FORMAT:
                raise SparrowError(f"{self.path} has the format {content.get('format')!r}", expected=RESUME_FORMAT)
            job, saved = dict(content["job"]), dict(content["position"])
            job = {"device": "cpu", "precision": "'float32'", "processes": "1"} | job  # older files do not say
            changed = [key for key in sorted({*job, *self.job}) if job.get(key) != self.job.get(key)]
            if changed:
                raise SparrowError(
                    f"{self.path} keeps an unfinished training with another {' and '.join(changed)}: "
                    + "; ".join(f"{key} was {job.get(key)}" for key in changed),
                    expected="; ".join(f"{key} {self.job.get(key)}" for key in changed),
                )
            history = [EpochRecord(**record) for record in saved.pop("history")]
            position = _Position(**saved, history=history)
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except SparrowError as error:
            raise SparrowError(error.got, expected=error.expected, next_step=next_step) from error
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise SparrowError(
                f"{self.path} is damaged: {error}", expected="the state of a training", next_step=next_step
            ) from error
        return position


def _describe_job(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> dict[str, str]:
    """Everything that has to be equal for a training to be resumed, as texts to compare and to show."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    groups = []
    for group in optimizer.param_groups:
        own = [f"{key} {group[key]}" for key in ("lr", "weight_decay") if group[key] != optimizer.defaults[key]]
        groups.append(" with ".join([f"{len(group['params'])} tensors", *own]))
    return {
        **{key: repr(value) for key, value in dataclasses.asdict(config).items()},
        "device": processes.device.type,
        "processes": str(processes.count),
        "data": f"{data.name}, {len(data.train_labels)} images",
        "starting weights": digest.hexdigest()[:16],
        "parameter groups": ", ".join(groups),
    }


def _check_finite(model: nn.Module, position: _Position, path: Path) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise _diverged(f"the parameter {name} became NaN or infinite", position, path)


def _diverged(what: str, position: _Position, path: Path) -> SparrowError:
    return SparrowError(
        f"{what} in epoch {position.epoch + 1} after {position.step} steps",
        expected="finite numbers",
        next_step=f"lower the learning rate and add --restart; the last good state is in {path}",
    )


class _Log:
    """A TensorBoard log, or nothing."""

    def __init__(self, folder: Path | None, sparsity: Callable[[], float] | None) -> None:
        self._folder, self._sparsity = folder, sparsity
        self._writer: Any = None
        self._last = -math.inf
        if folder is not None and find_spec("tensorboard") is None:
            raise SparrowError("the TensorBoard log needs the package tensorboard", expected="an installed tensorboard",
                               next_step="pip install tensorboard, or leave the log out")  # fmt: skip

    def open(self, done: int) -> None:
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run logged after its last saved state is run again.
            self._writer = SummaryWriter(str(self._folder), purge_step=done + 1)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, done: int, position: _Position, learning_rate: float) -> None:
        if self._writer is None or time.monotonic() - self._last < LOG_SECONDS:
            return
        self._last = time.monotonic()
        values = {"loss": position.loss_sum / position.images, "accuracy": 100 * position.correct / position.images,
                  "learning rate": learning_rate}  # fmt: skip
        if self._sparsity is not None:
            values["sparsity"] = self._sparsity()
        for name, value in values.items():
            self._writer.add_scalar(f"training/{name}", value, done)

    def epoch(self, done: int, record: EpochRecord) -> None:
        if self._writer is not None:
            self._writer.add_scalar("test/accuracy", record.test_accuracy, done)


class _Display:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total_steps: int, enabled: bool, sparsity: Callable[[], float] | None) -> None:
        self._sparsity = sparsity
        self._console = Console(stderr=True, quiet=not enabled, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
            transient=True,
        )
        self._total = total_steps
        self._task = self._bar.add_task("training", total=total_steps)
        self._first: tuple[int, float] | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, done: int, position: _Position, learning_rate: float) -> None:
        now = time.monotonic()
        self._first = self._first or (done, now)
        wait = BAR_SECONDS if not self._bar.disable else PLAIN_LINE_SECONDS
        if now - self._last_line <= wait and (self._bar.disable or done != self._total):
            return
        self._last_line = now
        text = (
            f"epoch {position.epoch + 1}  loss {position.loss_sum / position.images:.4f}  "
            f"accuracy {100 * position.correct / position.images:.2f} %  learning rate {learning_rate:.2g}"
        )
        if self._sparsity is not None:
            text += f"  sparsity {100 * self._sparsity():.1f} %"
        if not self._bar.disable:
            self._bar.update(self._task, completed=done, description=text)
        else:
            first, start = self._first
            left = (now - start) / max(1, done - first) * (self._total - done)
            self._console.print(f"{text}  {left / 60:.1f} minutes left", highlight=False)

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        self._console.print(
            f"epoch {record.epoch} of {epochs}  loss {record.loss:.4f}  training accuracy {record.train_accuracy:.2f} %"
            f"  test accuracy {record.test_accuracy:.2f} %  {record.seconds:.0f} s",
            highlight=False,
        )
        self._last_line = time.monotonic()

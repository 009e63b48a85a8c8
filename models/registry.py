"""The list of networks by name, and the function that builds one.

The names and what is known of each network are plain data, so that a command line can list them without
importing PyTorch, which takes seconds.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparrow.kernels.errors import SparrowError, near_names

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a network without building it.

    Attributes:
        factory: ``module:callable`` inside ``sparrow.models``; called with ``classes`` and ``options``.
        input_shape: Channels, height and width of one input image.
        classes: Number of classes that the network tells apart by default.
        summary: One line for people, with the number of parameters in millions (M) or thousands (k).
        options: Keyword arguments for the factory that tell members of a family apart.
    """

    factory: str
    input_shape: tuple[int, int, int]
    classes: int
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)


_DIGIT, _CIFAR, _IMAGENET = (1, 8, 8), (3, 32, 32), (3, 224, 224)
_CIFAR_RESNET = "resnet_cifar:CifarResNet"

MODELS: dict[str, ModelSpec] = {
    "digits": ModelSpec("digits_net:DigitsNet", _DIGIT, 10, "small residual network for handwritten digits, 24 k"),
    "resnet20": ModelSpec(_CIFAR_RESNET, _CIFAR, 10, "ResNet-20 for CIFAR, 0.27 M", {"depth": 20}),
    "resnet32": ModelSpec(_CIFAR_RESNET, _CIFAR, 10, "ResNet-32 for CIFAR, 0.46 M", {"depth": 32}),
    "resnet44": ModelSpec(_CIFAR_RESNET, _CIFAR, 10, "ResNet-44 for CIFAR, 0.66 M", {"depth": 44}),
    "resnet56": ModelSpec(_CIFAR_RESNET, _CIFAR, 10, "ResNet-56 for CIFAR, 0.85 M", {"depth": 56}),
    "resnet20-b": ModelSpec(
        _CIFAR_RESNET, _CIFAR, 10, "ResNet-20, 1x1 shortcuts, 0.27 M", {"depth": 20, "shortcut": "B"}
    ),
    "resnet32-b": ModelSpec(
        _CIFAR_RESNET, _CIFAR, 10, "ResNet-32, 1x1 shortcuts, 0.47 M", {"depth": 32, "shortcut": "B"}
    ),
    "resnet44-b": ModelSpec(
        _CIFAR_RESNET, _CIFAR, 10, "ResNet-44, 1x1 shortcuts, 0.66 M", {"depth": 44, "shortcut": "B"}
    ),
    "resnet56-b": ModelSpec(
        _CIFAR_RESNET, _CIFAR, 10, "ResNet-56, 1x1 shortcuts, 0.86 M", {"depth": 56, "shortcut": "B"}
    ),
    "vgg-small": ModelSpec("vgg_small:VggSmall", _CIFAR, 10, "VGG-small for CIFAR, 4.66 M"),
    "resnet18": ModelSpec("resnet_imagenet:ResNet", _IMAGENET, 1000, "ResNet-18, 11.7 M", {"depth": 18}),
    "resnet50": ModelSpec("resnet_imagenet:ResNet", _IMAGENET, 1000, "ResNet-50, 25.6 M", {"depth": 50}),
    "mobilenet-v2": ModelSpec("mobilenet_v2:MobileNetV2", _IMAGENET, 1000, "MobileNetV2 1.0, 3.50 M"),
    "mnasnet": ModelSpec("mnasnet:MnasNet", _IMAGENET, 1000, "MnasNet-B1 1.0, 4.38 M"),
    "proxylessnas": ModelSpec("proxylessnas:ProxylessNas", _IMAGENET, 1000, "ProxylessNAS mobile, 4.08 M"),
}


def build_model(name: str, *, classes: int | None = None) -> "nn.Module":
    """Build a network with fresh weights, drawn from PyTorch's global generator (``torch.manual_seed``).

    Args:
        name: A key of :data:`MODELS`, or ``path/to/file.py:factory`` for a user's own network, where
            ``factory`` is called without arguments and returns a ``torch.nn.Module``. That file is executed:
            name only code that you trust.
        classes: Number of classes, by default the registry's. A user's own factory decides for itself.

    Returns:
        The network, in training mode.

    Raises:
        SparrowError: The name is unknown, ``classes`` is below 1, or the user's file or factory is missing,
            fails, or returns something else.
    """
    if classes is not None and classes < 1:
        raise SparrowError(f"classes is {classes}", expected="at least 1")
    if name not in MODELS:
        if ":" in name or name.endswith(".py"):
            return _build_user_model(name)
        raise _unknown_model(name)
    spec = MODELS[name]
    module, _, factory = spec.factory.partition(":")
    build = getattr(importlib.import_module(f"sparrow.models.{module}"), factory)
    model: nn.Module = build(classes=spec.classes if classes is None else classes, **spec.options)
    return model


def model_input_shape(name: str) -> tuple[int, int, int]:
    """Look up channels, height and width of one input image of a registered network.

    Raises:
        SparrowError: The name is no key of :data:`MODELS`. A user's own network takes its shape from the data.
    """
    if name not in MODELS:
        raise _unknown_model(name)
    return MODELS[name].input_shape


def _unknown_model(name: str) -> SparrowError:
    return SparrowError(
        f"unknown model {name!r}",
        expected=near_names(name, MODELS),
        next_step="choose one of these, or name your own network as path/to/file.py:factory",
    )


def _build_user_model(name: str) -> "nn.Module":
    from torch import nn

    # From the right, because the path itself may hold a colon (C:\...).
    path_text, _, factory_name = name.rpartition(":")
    if not path_text or not factory_name:
        raise SparrowError(
            f"{name!r} does not name a Python file and a factory in it",
            expected="path/to/file.py:factory",
            next_step=f"add the function's name, such as {name.strip(':')}:build",
        )
    path = Path(path_text)
    if not path.is_file():
        raise SparrowError(
            f"there is no file {path}",
            expected="path/to/file.py:factory, or one of: " + ", ".join(MODELS),
            next_step="check the path; it is taken relative to the current folder",
        )
    with _importable_folder(path.resolve().parent):
        module = _execute(path)
        factory = _find_factory(module, factory_name, path)
        try:
            model = factory()
        except (Exception, SystemExit) as error:
            raise SparrowError(
                f"{factory_name}() raised {_describe(error, path)}",
                expected="a factory that takes no arguments and returns a torch.nn.Module",
                next_step=f"mend {path}; give every argument of {factory_name} a default",
            ) from error
    if not isinstance(model, nn.Module):
        raise SparrowError(
            f"{factory_name}() in {path} returned {type(model).__module__}.{type(model).__qualname__}",
            expected="a torch.nn.Module",
            next_step="return the network itself, neither a state dict nor a tuple",
        )
    return model


def _execute(path: Path) -> ModuleType:
    # A name that no import statement can write, so that the user's file never shadows an installed package.
    module_name = f"sparrow-user-model:{path.resolve()}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise SparrowError(f"{path} is not a Python source file", expected="a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise SparrowError(
            f"{path} cannot be imported: {_describe(error, path)}",
            expected="a Python file that imports without an error",
            next_step=f"mend it until this works: python {path}",
        ) from error
    return module


def _find_factory(module: ModuleType, name: str, path: Path) -> Callable[[], object]:
    factory: object = getattr(module, name, None)
    if callable(factory):
        return factory
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    if factory is not None:
        got = f"{name} in {path} is {type(factory).__name__}, which cannot be called"
    else:
        got = f"{path} has no {name}"
    raise SparrowError(
        got,
        expected=f"a function or class; {near_names(name, own)}" if own else "a function or class",
        next_step=f"name one that returns the network: {path}:<factory>",
    )


def _describe(error: BaseException, path: Path) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    where = f" ({path}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


@contextmanager
def _importable_folder(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, as it can when it is run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))

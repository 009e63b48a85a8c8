"""Checkpoints: reading them without running their code, writing them whole or not at all, and loading weights."""

import io
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file

# Where training scripts keep the state dict inside a checkpoint, and what wrappers put before each of its names.
_WRAPPINGS = ("state_dict", "model_state", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile

_SHOWN = 4  # names listed of each kind of mismatch


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file that ``torch.save`` wrote, without executing anything in it.

    Args:
        path: File to read. Tensors land on the CPU.

    Returns:
        The saved dictionary.

    Raises:
        SparrowError: The file is missing, empty, truncated or no PyTorch file, holds objects that only running code
            could restore, or holds something other than a dictionary.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError as error:
        raise SparrowError(
            f"there is no file {path}",
            expected="a checkpoint that torch.save or Sparrow wrote",
            next_step="check the path; it is taken relative to the current folder",
        ) from error
    except OSError as error:
        raise SparrowError(f"cannot read {path}: {error.strerror}", expected="a readable file") from error
    if not head:
        raise SparrowError(f"{path} is empty", expected="a checkpoint", next_step="copy or train it again")
    # torch.save writes a zip archive; before PyTorch 1.6, a protocol 2 pickle.
    if not head.startswith((b"PK", b"\x80")):
        raise SparrowError(
            f"{path} is not a PyTorch checkpoint (it starts with bytes {head.hex(' ')})",
            expected="a file that torch.save wrote",
            next_step="to compile an ONNX file, give it to sparrow compile" if path.suffix == ".onnx" else "",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that the errors below refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file raises anything from KeyError to RuntimeError
        raise _explain_load_error(path, error) from error
    if not isinstance(content, dict):
        raise SparrowError(
            f"{path} holds a {type(content).__name__}",
            expected="a dictionary, such as a state dict",
            next_step="save it with: torch.save({'state_dict': model.state_dict()}, path)",
        )
    return content


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint beside ``path`` and rename it, so that an interruption leaves the old one or the new one.

    Args:
        checkpoint: Tensors, numbers, strings, and lists and dictionaries of them: what :func:`load_checkpoint`
            reads back.
        path: File to write or replace.

    Raises:
        SparrowError: The folder is missing or cannot be written, or the disk is full.
        pickle.UnpicklingError: ``checkpoint`` holds an object that :func:`load_checkpoint` would refuse, such as a
            NumPy number.
    """
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    # Refusing now is better than a long training that cannot be resumed.
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)
    # torch.save into the file itself would report a full disk as a RuntimeError without a cause.
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load a checkpoint's weights into a network of the same architecture, every tensor by name.

    Args:
        model: Network to fill; unchanged if an error is raised.
        checkpoint: A state dict, or a dictionary that holds one under ``state_dict``, ``model_state``, ``model`` or
            ``net``. Names may carry the prefixes of ``DataParallel`` (``module.``) and ``torch.compile``.

    Raises:
        SparrowError: No state dict is found, names or shapes differ from the network's, or a value is NaN or
            infinite.
    """
    expected = model.state_dict()
    weights = _strip_prefixes(_find_state_dict(checkpoint), expected)
    mismatches = _mismatches(weights, expected)
    if mismatches:
        raise SparrowError(
            f"checkpoint of another architecture than {type(model).__name__}: " + "; ".join(mismatches),
            expected=f"the network's {len(expected)} tensors by name and shape",
            next_step="name the network (and number of classes) that the checkpoint was trained as",
        )
    for name, tensor in weights.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise SparrowError(
                f"tensor {name} has {bad} of {tensor.numel()} values that are NaN or infinite",
                expected="finite weights",
                next_step="training diverged before this checkpoint; use an earlier one or a smaller learning rate",
            )
    model.load_state_dict(weights)


def _explain_load_error(path: Path, error: Exception) -> SparrowError:
    text = str(error)
    # Both "Unsupported global: GLOBAL x.y was not an allowed global" and "unsupported GLOBAL x.y whose module ...".
    if refused := re.search(r"GLOBAL ([\w.]+)", text):
        return SparrowError(
            f"{path} was refused: it holds {refused[1]}, which only running code from the file could restore",
            expected="tensors, numbers, strings, lists and dictionaries",
            next_step="only if you trust its author: load it with torch yourself and save {'state_dict': ...} alone",
        )
    if "TorchScript" in text:
        return SparrowError(
            f"{path} is a TorchScript archive",
            expected="a checkpoint with a state dict",
            next_step="save torch.jit.load(path).state_dict() with torch.save",
        )
    return SparrowError(
        f"{path} is truncated, damaged or not a PyTorch checkpoint ({type(error).__name__})",
        expected="a complete file that torch.save wrote",
        next_step="compare its size and checksum with the original, and copy it again",
    )


def _find_state_dict(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    for candidate in (checkpoint, *(checkpoint.get(key) for key in _WRAPPINGS)):
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in candidate.items())
        ):
            return candidate
    raise SparrowError(
        f"the checkpoint holds no state dict; its keys are {_some(map(repr, checkpoint), 8) or 'none'}",
        expected=f"tensors by name, alone or under {', '.join(_WRAPPINGS)}",
        next_step="save it with: torch.save({'state_dict': model.state_dict()}, path)",
    )


def _strip_prefixes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers' prefixes that all of the checkpoint's names carry, until names match the network's."""
    stripped = dict(weights)
    while stripped.keys().isdisjoint(expected):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in stripped)), None)
        if prefix is None:
            break
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def _mismatches(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    # Networks saved before PyTorch 0.4.1 lack batch norm's step counter, which inference does not use.
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]


def _some(names: Iterable[str], shown: int = _SHOWN) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")

"""The project file ``sparrow.yaml``: a user's defaults for the options of commands.

    compile:
      target: cortex-a76
    bench:
      runner: adb
      threads: [1, 4]
    devices:
      host: [pi@raspberrypi, pi@10.0.0.7]

It is looked for in the working folder and those above it. A section is a command, a key one of its long options without
the hyphens in front. What is typed on the command line comes before it; relative paths start at its folder.
"""

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from sparrow.kernels.errors import SparrowError, near_names

PROJECT_FILE = "sparrow.yaml"

log = logging.getLogger("sparrow")


@dataclass(frozen=True)
class Project:
    """A project file.

    Attributes:
        path: Where it is.
        sections: Options by command, as they stand in the file.
    """

    path: Path
    sections: dict[str, dict[str, Any]]

    def defaults(self, command: click.Command) -> dict[str, Any]:
        """Defaults for a command's parameters, by the parameter's name.

        Args:
            command: Command, named as its section is.

        Raises:
            SparrowError: The section has a key that is no option of the command, or a value that is none of the option.
        """
        options = {
            max(parameter.opts, key=len).removeprefix("--"): parameter
            for parameter in command.params
            if isinstance(parameter, click.Option) and parameter.expose_value
        }
        values = {}
        for key, value in self.sections.get(command.name or "", {}).items():
            if key not in options:
                raise SparrowError(f"{self.path}: {command.name} has no option {key!r}",
                                   expected=near_names(str(key), options),
                                   next_step=f"sparrow {command.name} --help")  # fmt: skip
            values[options[key].name or key] = self._value(command, options[key], value)
        return values

    def _value(self, command: click.Command, option: click.Option, value: Any) -> Any:
        """A value as the command line would give it, after a trial of what the command will make of it."""
        place = f"{self.path}: {max(option.opts, key=len).removeprefix('--')} of {command.name}"
        if isinstance(value, dict) or value is None:
            raise SparrowError(f"{place} is {value!r}", expected="a value or a list of values")
        parts = list(value) if isinstance(value, list) else [value]
        kinds = option.type.types if isinstance(option.type, click.Tuple) else [option.type] * len(parts)
        if len(parts) != len(kinds):
            raise SparrowError(f"{place} is {value!r}", expected=f"a list of {len(kinds)} values")
        for index, kind in enumerate(kinds):
            if isinstance(kind, click.Path):
                parts[index] = str(self.path.parent / Path(str(parts[index])).expanduser())
        given: Any = parts
        if not option.multiple and option.nargs == 1:
            given = ",".join(map(str, parts)) if isinstance(value, list) else parts[0]
        context = click.Context(command)
        try:
            converted = option.type_cast_value(context, given)
            if option.callback is not None:
                option.callback(context, option, converted)
        except click.BadParameter as error:
            raise SparrowError(f"{place} is {value!r}: {error.message}",
                               next_step=f"sparrow {command.name} --help") from error  # fmt: skip
        return given


def find_project(start: Path | None = None) -> Path | None:
    """Look for the project file in a folder and those above it.

    A file of another user's is passed over with a warning: in a folder that all may write to, such as ``/tmp``, it
    could choose what a command runs.

    Args:
        start: Folder to begin in, by default the working folder.
    """
    folder = (start or Path.cwd()).absolute()
    for parent in (folder, *folder.parents):
        path = parent / PROJECT_FILE
        if not path.is_file():
            continue
        if path.stat().st_uid in (os.getuid(), 0):
            return path
        log.warning("%s belongs to another user and is passed over", path)
    return None


def load_project(path: Path, commands: Collection[str]) -> Project:
    """Read a project file.

    Args:
        path: The file.
        commands: Names of all commands.

    Raises:
        SparrowError: It cannot be read, is no YAML, or has a section that is no command.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise SparrowError(f"{path} cannot be read: {' '.join(str(error).split())}",
                           expected="a YAML file with a section for each command",
                           next_step="correct it, or move it away") from error  # fmt: skip
    if not isinstance(content, dict):
        raise SparrowError(f"{path} holds {type(content).__name__}", expected="a section for each command")
    for name, section in content.items():
        if name not in commands:
            raise SparrowError(f"{path}: there is no command {name!r}", expected=near_names(str(name), commands))
        if not isinstance(section, dict):
            raise SparrowError(f"{path}: the section {name} holds {section!r}", expected="options and their values")
    return Project(path, content)

"""Help, suggestions, completion and colours: what a terminal shows before any work is done."""

import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress

import click
import pytest
from click.testing import CliRunner

from sparrow.deploy.cli.completion import command as completion
from sparrow.deploy.cli.main import COMMANDS, COMPLETION_VARIABLE, group

SPARROW = "from sparrow.deploy.cli import main; main()"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name):
    command = group.get_command(click.Context(group), name)
    result = CliRunner().invoke(command, ["--help"], prog_name=f"sparrow {name}")
    assert result.exit_code == 0
    examples = re.search(r"Examples:\n((?:  +.*\n)+)", result.output)
    assert examples, result.output
    lines = [line.strip() for line in examples[1].replace("\\\n", "").splitlines()]
    assert all(f"sparrow {name}" in line for line in lines)
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_list_of_commands_is_the_folder():
    names = {name for name in COMMANDS if group.get_command(click.Context(group), name).name == name}
    assert names == set(COMMANDS)
    assert all(f"  {name} " in CliRunner().invoke(group, ["--help"]).output for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["benhc"], "did you mean 'bench'"), (["run", "b", "--tpo", "3"], "'--top'"),
     (["verify", "b", "--thread", "3"], "'--threads'"), (["run", "b", "--runner", "abd"], "'adb'")],
)  # fmt: skip
def test_near_names_are_suggested(arguments, hint):
    result = CliRunner().invoke(group, arguments)
    assert (result.exit_code, hint in result.stderr) == (2, True), result.stderr


def complete(words: str) -> list[str]:
    environment = {**os.environ, COMPLETION_VARIABLE: "bash_complete", "COMP_WORDS": words,
                   "COMP_CWORD": str(len(words.split(" ")) - 1)}  # fmt: skip
    result = subprocess.run([sys.executable, "-c", SPARROW], env=environment, capture_output=True, text=True,
                            timeout=60, check=True)  # fmt: skip
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_a_shell_completes_commands_options_and_values():
    assert complete("sparrow de") == ["demo", "devices"]
    assert "--labels" in complete("sparrow run --l")
    assert complete("sparrow run b --runner a") == ["adb"]
    assert complete("sparrow nothing --x") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_one(shell, tmp_path):
    result = CliRunner().invoke(completion, [shell], catch_exceptions=False)
    assert COMPLETION_VARIABLE in result.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, its script was not parsed")
    (tmp_path / "script").write_text(result.stdout)
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def on_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """What a command prints to a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SPARROW, *arguments], stdin=slave, stdout=slave, stderr=slave,
                               env={**os.environ, "TERM": "xterm-256color", **environment})  # fmt: skip
    os.close(slave)
    output = b""
    with suppress(OSError):  # the end of a terminal is an error
        while data := os.read(master, 4096):
            output += data
    os.close(master)
    process.wait(timeout=60)
    return output.decode()


def test_colours_are_for_terminals_and_no_color_turns_them_off(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")  # quick: nothing to ask for its version
    assert "\x1b[3" in on_terminal(["doctor"], {})
    plain = on_terminal(["doctor"], {"NO_COLOR": "1"})
    assert "qemu-aarch64" in plain and "\x1b[" not in plain
    assert "\x1b[" not in CliRunner().invoke(group, ["doctor"]).stdout

"""The project file ``sparrow.yaml``: where it is found, what it may say, and what comes before it."""

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sparrow.deploy.cli.main import COMMANDS, group
from sparrow.deploy.cli.project import find_project, load_project
from sparrow.kernels.errors import SparrowError


@click.command("bench")
@click.option("--threads", default="1")
@click.option("--host", "hosts", multiple=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--profile", is_flag=True)
@click.option("--limit", type=int)
@click.option("--teacher", nargs=2, type=(str, click.Path(path_type=Path)))
def bench(**values: Any) -> None:
    """Print what the options are."""
    click.echo(json.dumps(values, default=str))


def run(text: str, folder: Path, *arguments: str) -> dict[str, Any]:
    (folder / "sparrow.yaml").write_text(text)
    defaults = load_project(folder / "sparrow.yaml", COMMANDS).defaults(bench)
    result = CliRunner().invoke(bench, list(arguments), default_map=defaults, catch_exceptions=False)
    return dict(json.loads(result.stdout))


def test_values_become_what_the_command_line_would_give(tmp_path):
    text = "bench:\n  threads: [1, 4]\n  host: [a, b]\n  data-dir: data/set\n  profile: true\n  limit: 3\n"
    assert run(text, tmp_path) == {"threads": "1,4", "hosts": ["a", "b"], "data_dir": str(tmp_path / "data/set"),
                                   "profile": True, "limit": 3, "teacher": None}  # fmt: skip
    assert run("bench: {host: a, threads: 2}", tmp_path)["hosts"] == ["a"]
    assert run("bench: {teacher: [big, b.pt]}", tmp_path)["teacher"] == ["big", str(tmp_path / "b.pt")]


def test_the_command_line_comes_first(tmp_path):
    found = run("bench: {threads: 4, host: [a]}", tmp_path, "--threads", "2", "--host", "c")
    assert (found["threads"], found["hosts"]) == ("2", ["c"])


def test_it_is_found_above_the_working_folder_and_the_nearest_counts(tmp_path):
    below = tmp_path / "a folder" / "below"
    below.mkdir(parents=True)
    (tmp_path / "sparrow.yaml").write_text("bench: {threads: 2}")
    assert find_project(below) == tmp_path / "sparrow.yaml"
    (below.parent / "sparrow.yaml").write_text("bench: {threads: 3}")
    assert find_project(below) == below.parent / "sparrow.yaml"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_another_user_is_passed_over(tmp_path, caplog):
    (tmp_path / "sparrow.yaml").write_text("train: {model: evil.py:run}")
    os.chown(tmp_path / "sparrow.yaml", 12345, 12345)
    assert find_project(tmp_path) is None
    assert "belongs to another user" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bnech: {threads: 2}", "no command 'bnech'\n  expected: did you mean 'bench'"),
        ("bench: {thread: 2}", "bench has no option 'thread'\n  expected: did you mean 'threads'"),
        ("bench: {threads: {a: 1}}", "expected: a value or a list"),
        ("bench: {limit: three}", "sparrow.yaml: limit of bench is 'three': 'three' is not a valid integer"),
        ("bench: {teacher: big}", "teacher of bench is 'big'\n  expected: a list of 2 values"),
        ("bench: 4", "the section bench holds 4"),
        ("- bench", "expected: a section for each command"),
        ("bench: [", "cannot be read: .*expected"),
        ("bench: !!python/object/apply:os.system [id]", "cannot be read: .*could not determine a constructor"),
        ("bench: {1: 2}", "no option 1"),
    ],
)
def test_what_is_wrong_in_it_is_named(tmp_path, text, message):
    with pytest.raises(SparrowError, match=message):
        run(text, tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "sparrow.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SparrowError, match="cannot be read"):
        load_project(tmp_path / "sparrow.yaml", COMMANDS)


def test_the_command_group_applies_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sparrow.yaml").write_text("compile: {target: z80, output: out}")
    wrong = str(CliRunner().invoke(group, ["compile", "x.onnx"]).exception)
    assert f"{tmp_path / 'sparrow.yaml'}: target of compile is 'z80': 'z80' is not one of" in wrong
    (tmp_path / "sparrow.yaml").write_text("bench: {threads: '1,zero'}")
    assert "expected positive numbers" in str(CliRunner().invoke(group, ["bench", "x"]).exception)
    (tmp_path / "sparrow.yaml").write_text("compile: {target: armv8-a, output: out}")
    result = CliRunner().invoke(group, ["compile", "x.onnx"])
    assert isinstance(result.exception, SparrowError) and "x.onnx is not a file" in str(result.exception)
    (tmp_path / "sparrow.yaml").write_text("compile: {targte: armv8-a}")
    assert "did you mean 'target'" in str(CliRunner().invoke(group, ["compile", "x.onnx"]).exception)
    assert CliRunner().invoke(group, ["--help"]).exit_code == 0

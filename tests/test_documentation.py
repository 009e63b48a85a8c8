"""What the documentation tells a user to type, its links, and that it builds."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sparrow.deploy.cli.main import group

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "docs", "docker", "examples/*")
PAGES = [page for folder in FOLDERS for page in sorted(ROOT.glob(f"{folder}/*.md"))]
SPARROW = [sys.executable, "-c", "from sparrow.deploy.cli import main; main()"]
FENCE = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```$", re.M | re.S)
CONTAINER = re.compile(r"docker run (?:.*?) sparrow(?= [a-z])")


def commands(text: str) -> list[str]:
    """The lines of a page's code blocks that call ``sparrow``, in a container too."""
    lines = "\n".join(FENCE.findall(text)).replace("\\\n", " ").splitlines()
    plain = [CONTAINER.sub("sparrow", line.strip().removeprefix("$ ").removeprefix(".venv/bin/")) for line in lines]
    return [line for line in plain if line.startswith("sparrow ")]


def every_command() -> list[str]:
    found = {line: None for page in PAGES for line in commands(page.read_text(encoding="utf-8"))}
    return list(found)


@pytest.mark.parametrize("line", every_command())
def test_every_command_parses(line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = group.get_command(click.Context(group), name)
    if not {"--help", "--version"} & set(arguments):
        command.make_context(name, arguments)


def test_blocks_and_containers_are_found():
    text = "```\nsparrow doctor\npip install x\n```\n```sh\ndocker run --rm -v x:/y sparrow compile m\n```\n"
    assert commands(text + "sparrow no\n") == ["sparrow doctor", "sparrow compile m"]
    assert len(every_command()) > 40


def test_commands_that_do_not_exist_are_noticed():
    with pytest.raises(click.UsageError):
        test_every_command_parses("sparrow compyle model.onnx")
    with pytest.raises(click.UsageError):
        test_every_command_parses("sparrow inspect r20/ --no-such-option")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_of_the_repository_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_site_builds_and_its_links_hold(tmp_path):
    pytest.importorskip("mkdocs", reason="the documentation is built by mkdocs: pip install -e '.[dev]'")
    packages = ROOT / "build" / "types" / "sparrow"
    packages.mkdir(parents=True, exist_ok=True)
    for top in ("benchmarks", "deploy", "kernels", "models", "quantize"):
        if not (packages / top).exists():
            (packages / top).symlink_to(Path("../../..") / top)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    text = (tmp_path / "site" / "compile.html").read_text(encoding="utf-8")
    assert "compile_model" in text and "Bundle folder to write" in text  # from the docstring


@pytest.mark.slow
@pytest.mark.tvm
@pytest.mark.qemu
def test_the_first_page_leads_to_an_answer(tmp_path):
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("needs qemu-aarch64 (Debian package qemu-user)")
    marker, fence = "<!-- run by tests/test_documentation.py -->\n", "```\n"
    block = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split(marker + fence)[1].split(fence)[0]
    outputs = []
    for line in commands(fence + block + "```\n"):
        name, *arguments = shlex.split(line)[1:]
        result = subprocess.run([*SPARROW, name, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                                env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        outputs.append(result.stdout)
    assert len(outputs) == 7
    assert "ok: the same top-1" in outputs[4]
    assert "instructions" in outputs[5]

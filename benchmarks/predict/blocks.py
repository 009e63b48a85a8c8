"""Cycles of executed blocks by ``llvm-mca``, LLVM's simulator of the pipelines that its compiler schedules for.

A block is simulated as if it ran again and again, which is what the blocks that matter, the bodies of loops, do. All
data come from the first-level cache and all branches are foreseen.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import partial

from sparrow.kernels.errors import SparrowError

# The pipeline models change with every release, and with them what the cores' data files were checked with.
LLVM_RELEASE = 19
MCA, DISASSEMBLER = f"llvm-mca-{LLVM_RELEASE}", f"llvm-mc-{LLVM_RELEASE}"

ITERATIONS = 100
_TIMEOUT_SECONDS = 300
_EVERY_INSTRUCTION = "-mattr=+all"
# Pipeline model and code -> cycles: one inference's blocks are those of the next, on any number of threads.
_simulated: dict[tuple[str, bytes], float | None] = {}
_REGION = re.compile(r"^\[\d+\] Code Region - (\d+)\n+Iterations: +(\d+)\nInstructions: +(\d+)\nTotal Cycles: +(\d+)$",
                     re.MULTILINE)  # fmt: skip


def check_tools() -> None:
    """Do nothing if LLVM's tools are installed.

    Raises:
        SparrowError: One is missing, so that cycles cannot be predicted.
    """
    for tool in (MCA, DISASSEMBLER):
        if shutil.which(tool) is None:
            raise SparrowError(f"{tool} is not installed: cycles cannot be predicted, instructions are still counted",
                               expected=f"LLVM {LLVM_RELEASE}, whose pipeline models the cores were checked with",
                               next_step=f"apt-get install llvm-{LLVM_RELEASE}   (Debian, Ubuntu)")  # fmt: skip


def cycles_per_execution(blocks: Sequence[bytes], pipeline_model: str) -> list[float | None]:
    """Simulate blocks on a pipeline, each block once in the life of this process.

    Args:
        blocks: Their instructions, 4 bytes each, little-endian.
        pipeline_model: LLVM's name of the core, such as ``cortex-a55``.

    Returns:
        Cycles of one execution for each block, in the same order; ``None`` where LLVM knows none of its instructions.
        An instruction that it does not know costs the mean of the others in its block.

    Raises:
        SparrowError: LLVM's tools are missing, or failed.
    """
    check_tools()
    new = sorted({block for block in blocks if (pipeline_model, block) not in _simulated})
    if new:
        costs = _simulate(new, pipeline_model)
        _simulated.update({(pipeline_model, block): cost for block, cost in zip(new, costs, strict=True)})
    return [_simulated[pipeline_model, block] for block in blocks]


def _simulate(blocks: Sequence[bytes], pipeline_model: str) -> list[float | None]:
    text = disassemble({word for block in blocks for word in _words(block)})
    lines = []
    for number, block in enumerate(blocks):
        if body := [text[word] for word in _words(block) if word in text]:
            lines += [f"# LLVM-MCA-BEGIN {number}", *body, f"# LLVM-MCA-END {number}"]
    if not lines:
        return [None] * len(blocks)
    report = _run(
        [MCA, "-mtriple=aarch64", _EVERY_INSTRUCTION, f"-mcpu={pipeline_model}", f"-iterations={ITERATIONS}",
         "-skip-unsupported-instructions=any", "-resource-pressure=false", "-instruction-info=false"],
        lines,
    ).stdout  # fmt: skip
    per_instruction = parse_report(report)
    return [
        per_instruction[number] * (len(block) // 4) if number in per_instruction else None
        for number, block in enumerate(blocks)
    ]


def parse_report(report: str) -> dict[int, float]:
    """Read what ``llvm-mca`` printed for regions that are named by numbers.

    Returns:
        Cycles for each instruction that it simulated, by the region's number.
    """
    regions = (tuple(map(int, match.groups())) for match in _REGION.finditer(report))
    return {number: cycles / instructions for number, _, instructions, cycles in regions if instructions}


def disassemble(words: Iterable[int]) -> dict[int, str]:
    """Turn instruction words into assembly text; those that LLVM does not know are left out.

    Raises:
        SparrowError: The disassembler is missing or failed.
    """
    words = sorted(set(words))
    lines = [" ".join(f"{byte:#04x}" for byte in word.to_bytes(4, "little")) for word in words]
    result = _run([DISASSEMBLER, "--disassemble", "-triple=aarch64", _EVERY_INSTRUCTION], lines)
    unknown = {int(line) for line in re.findall(r"<stdin>:(\d+):\d+: warning: invalid instruction", result.stderr)}
    known = [word for line, word in enumerate(words, 1) if line not in unknown]
    text = [line.strip() for line in result.stdout.splitlines() if line.strip() not in ("", ".text")]
    if len(text) != len(known):
        raise SparrowError(f"{DISASSEMBLER} printed {len(text)} lines for {len(known)} instructions",
                           expected=f"the output of LLVM {LLVM_RELEASE}", next_step="sparrow doctor")  # fmt: skip
    return dict(zip(known, text, strict=True))


def _words(block: bytes) -> Iterable[int]:
    return map(partial(int.from_bytes, byteorder="little"), (block[at : at + 4] for at in range(0, len(block), 4)))


def _run(command: list[str], lines: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        result = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True,
                                timeout=_TIMEOUT_SECONDS, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SparrowError(f"{command[0]} does not run: {error}", next_step="sparrow doctor") from error
    if result.returncode:
        raise SparrowError(f"{command[0]} failed with exit code {result.returncode}\n{result.stderr.strip()[-2000:]}",
                           expected=f"the tools of LLVM {LLVM_RELEASE}", next_step="sparrow doctor")  # fmt: skip
    return result

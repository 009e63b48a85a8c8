"""What each micro-kernel does for an instruction and for a predicted cycle, beside what its core could do at most.

The kernels are those of ``kernels.inc``, called one by one on operands that fit the first two levels of cache, without
the drivers that bring operands into shape. Instructions are counted under QEMU; cycles are predicted, not measured.
Scalar twins are left out: no processor that the program runs on picks them.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from sparrow.benchmarks.predict.blocks import LLVM_RELEASE, check_tools
from sparrow.benchmarks.predict.core import Core, load_core
from sparrow.benchmarks.predict.peak import multiply_rates
from sparrow.benchmarks.predict.predict import price
from sparrow.benchmarks.predict.work import program_work
from sparrow.benchmarks.result_files import Environment, read_environment
from sparrow.benchmarks.runners.qemu import cpu_model, run
from sparrow.deploy.compiler import INCLUDE_FLAGS, runtime_objects
from sparrow.deploy.toolchain import Toolchain, find_toolchain
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.registry import KERNELS, NAME, MicroKernel

GUEST = Path(__file__).with_name("kernel_guest.c")
DEFAULT_CPUS = ("cortex-a53", "cortex-a76")

# QEMU's model of a core -> the instruction sets of the kernels that run on it.
INSTRUCTION_SETS = {
    "cortex-a53": ("neon",),
    "cortex-a72": ("neon",),
    "cortex-a76": ("neon", "neon_dotprod", "neon_fp16"),
    "max,sve=off,sme=off": ("neon", "neon_dotprod", "neon_fp16", "neon_i8mm"),
}

# Type of the left operand and instruction set -> the multiplication that bounds the kernel.
_MULTIPLIES = {
    ("f32", "neon"): "fmla (float32)",
    ("f16", "neon"): "fmla (float32)",
    ("f16", "neon_fp16"): "fmla (float16)",
    ("qa8t", "neon"): "smlal (int8)",
    ("qa8t", "neon_dotprod"): "sdot (int8)",
    ("qa8t", "neon_i8mm"): "smmla (int8)",
}
# Stages of a Winograd kernel: enum spw_winograd_stage of kernels/csrc/conv/winograd.h.
_WEIGHTS, _INPUT, _MULTIPLY, _OUTPUT = range(4)
_PLACES = 36  # products of a tile

_ELEMENT_BYTES = {"f32": 4, "f16": 2, "qa8t": 1, "cb4t": 1, "cb2t": 1}


@dataclass(frozen=True)
class Call:
    """Operands of one call: the numbers of ``struct call`` in ``kernel_guest.c``, in its order.

    Attributes:
        in_packs: Packs of 4 input channels, or pairs of them; of an unpacker blocks of 16 weights.
        window: Height and width of the window; of a Winograd transform the stage.
        stride: Of the window.
        rows: Of the output; of a transform tiles.
        columns: Of the output; of a transform columns of the 6x6 places.
        packs: Packs of 4 output channels.
        pixel_bytes: Bytes of 4 input channels, or of the 8 of a pair.
    """

    in_packs: int
    window: int = 1
    stride: int = 1
    rows: int = 1
    columns: int = 1
    packs: int = 1
    pixel_bytes: int = 4


@dataclass(frozen=True)
class KernelRow:
    """One kernel on one shape and core.

    Attributes:
        kernel: Its C symbol.
        role: What it computes, as ``kernels.inc`` names it.
        cpu: Core.
        shape: Operands of the call, in words.
        unit: What ``work`` counts: ``MAC``, or ``value`` for kernels that do not multiply weights by activations.
        work: Multiply-accumulates of one call, or values that it writes.
        instructions: Instructions of one call.
        cycles: Predicted cycles of one call; no measurement.
        per_instruction: ``work`` for an instruction.
        per_cycle: ``work`` for a predicted cycle.
        limit: Multiply-accumulates a cycle of a loop of nothing but its multiplications; ``None`` without any.
        limited_by: That multiplication.
    """

    kernel: str
    role: str
    cpu: str
    shape: str
    unit: str
    work: int
    instructions: int
    cycles: float
    per_instruction: float
    per_cycle: float
    limit: float | None
    limited_by: str


@dataclass(frozen=True)
class KernelsResult:
    """The table.

    Attributes:
        rows: Its rows.
        environment: What it was got with; its CPUs are those of the table, one after the other.
        errors: What is known of each core's predictions, in words.
        llvm_release: Release of LLVM whose pipeline models were used.
    """

    rows: tuple[KernelRow, ...]
    environment: Environment
    errors: dict[str, str]
    llvm_release: int = LLVM_RELEASE
    schema: str = field(default="sparrow-kernels", init=False)
    schema_version: int = field(default=1, init=False)


def bench_kernels(
    cpus: Sequence[str] = DEFAULT_CPUS,
    *,
    kernels: Sequence[MicroKernel] = KERNELS,
    toolchain: Toolchain | None = None,
    on_progress: Callable[[str], None] = lambda step: None,
) -> KernelsResult:
    """Count and predict each kernel on a few typical shapes.

    Args:
        cpus: Cores, names of ``predict.core.core_names()``.
        kernels: Kernels; those that a core cannot run are left out for it.
        toolchain: Cross compiler, by default the first that is installed.
        on_progress: Called with a text before each step.

    Returns:
        A row for each core, kernel and shape.

    Raises:
        SparrowError: A core is unknown, LLVM's tools or QEMU are missing, or the compiler failed.
    """
    cores = [load_core(name) for name in cpus]
    check_tools()
    toolchain = toolchain or find_toolchain()
    rows: list[KernelRow] = []
    with tempfile.TemporaryDirectory(prefix="sparrow-kernels-") as folder:
        on_progress("compile")
        program = _build(toolchain, Path(folder))
        for core in cores:
            on_progress(core.name)
            rows += _count(program, core, kernels, Path(folder) / "cases")
    environment = read_environment(cores[0].name)
    environment = Environment(
        environment.sparrow_version, environment.commit, environment.qemu_version, ", ".join(cpus),
        ", ".join(dict.fromkeys(cpu_model(core.name) for core in cores)),
    )  # fmt: skip
    return KernelsResult(tuple(rows), environment, {core.name: core.error_text() for core in cores})


def typical_calls(kernel: MicroKernel) -> list[tuple[str, Call]]:
    """Operands that stand for the layers of usual networks, each with its name.

    Args:
        kernel: A kernel of the list; what it is called with follows from its role.
    """
    family, match = kernel.role.split("_")[0], NAME.fullmatch(kernel.name)
    packs, pixel_bytes = max(1, kernel.channels // 4), 4 * _ELEMENT_BYTES[match["left"]] if match else 4
    shapes: dict[str, tuple[int, ...]]
    if family == "CONV":
        shapes = {"64 inputs, 3x3, 14x28 pixels": (16, 3, 1, 14, 28),
                  "256 inputs, 1x1, 196 pixels": (64, 1, 1, 1, 196),
                  "512 inputs, 1x1, 49 pixels": (128, 1, 1, 1, 49)}  # fmt: skip
    elif family == "CONVPAIRS":
        shapes = {"64 inputs, 3x3, 14x28 pixels": (8, 3, 1, 1, 392),  # rows follow each other
                  "256 inputs, 1x1, 196 pixels": (32, 1, 1, 1, 196),
                  "512 inputs, 1x1, 49 pixels": (64, 1, 1, 1, 49)}  # fmt: skip
        pixel_bytes *= 2
    elif family == "GEMV":
        shapes = {"512 inputs": (128,), "1280 inputs": (320,)}
    elif family in ("DWCONV", "DWROWS"):
        shapes = {"3x3, 28x28 pixels": (1, 3, 1, 28, 28), "3x3, stride 2, 14x14 pixels": (1, 3, 2, 14, 14),
                  "5x5, 14x14 pixels": (1, 5, 1, 14, 14)}  # fmt: skip
    elif family == "WINOGRAD":
        integer = "QA8" in kernel.role  # whose kernels transform a pack of inputs at a time, and make the products too
        in_packs, columns = 1 if integer else 16, 3 if "F16" in kernel.role else 1
        shapes = {"weights of 64 x 8 channels": (16, _WEIGHTS, 1, 1, columns),
                  f"inputs of 12 tiles, {4 * in_packs} channels": (in_packs, _INPUT, 1, 12),
                  "outputs of 12 tiles, 8 channels": (16, _OUTPUT, 1, 12)}  # fmt: skip
        if integer:
            shapes["products of 12 tiles, 64 x 8 channels"] = (16, _MULTIPLY, 1, 12)
        packs = 2
    else:
        shapes = {"144 blocks": (144,), "1152 blocks": (1152,)}
    return [(name, replace(Call(*numbers), packs=packs, pixel_bytes=pixel_bytes)) for name, numbers in shapes.items()]


def work_of(kernel: MicroKernel, call: Call) -> tuple[int, str]:
    """Work of one call and its unit, see ``KernelRow``."""
    family = kernel.role.split("_")[0]
    pixels, taps = call.rows * call.columns, call.in_packs * call.window**2
    if family in ("CONV", "CONVPAIRS", "GEMV"):
        return pixels * taps * (32 if family == "CONVPAIRS" else 16) * call.packs, "MAC"
    if family in ("DWCONV", "DWROWS"):
        return pixels * taps * 4, "MAC"
    if family == "WINOGRAD" and call.window == _MULTIPLY:
        return _PLACES * call.rows * 16 * call.in_packs * call.packs, "MAC"
    if family == "WINOGRAD":
        # Those of integers transform the weights of 4 outputs for all places, the others for columns of them.
        weights = _PLACES if "QA8" in kernel.role else 6 * call.columns * call.packs
        values = {_WEIGHTS: call.in_packs * 16 * weights, _INPUT: _PLACES * call.in_packs * call.rows * 4,
                  _OUTPUT: 16 * call.packs * call.rows * 4}  # fmt: skip
        return values[call.window], "value"
    return 16 * call.in_packs, "value"


def _build(toolchain: Toolchain, folder: Path) -> Path:
    guest = folder / "guest.o"
    toolchain.compile(GUEST, guest, flags=INCLUDE_FLAGS)
    toolchain.link_executable([guest, *runtime_objects(toolchain)], folder / "kernel_guest")
    return folder / "kernel_guest"


def _count(program: Path, core: Core, kernels: Sequence[MicroKernel], case_file: Path) -> list[KernelRow]:
    available = INSTRUCTION_SETS[cpu_model(core.name)]
    cases = [(kernel, *shape) for kernel in kernels if kernel.isa in available for shape in typical_calls(kernel)]
    case_file.write_text("".join(f"{kernel.symbol} {' '.join(map(str, astuple(call)))}\n" for kernel, _, call in cases))
    result = run(program, [str(case_file)], cpu=core.name, caches=[(core.l1, core.l2)])
    if result.exit_code:
        raise SparrowError(f"the kernels ended with {result.exit_code} on {core.name}\n{result.stderr.strip()}",
                           expected="a processor that runs them", next_step="sparrow doctor")  # fmt: skip
    sections = program_work(result.counts, core.pipeline_model).sections
    names = sorted({_multiplication(kernel) for kernel, *_ in cases} - {""})
    limits = multiply_rates(core, names) if names else {}
    rows = []
    for index, (kernel, shape, call) in enumerate(cases):
        executed = sections[2 * index + 1].total
        cycles = price(executed, core.figures).cycles
        work, unit = work_of(kernel, call)
        limited_by = _multiplication(kernel) if unit == "MAC" else ""
        rows.append(
            KernelRow(kernel.symbol, kernel.role, core.name, shape, unit, work, round(executed.instructions), cycles,
                      work / executed.instructions, work / cycles, limits.get(limited_by), limited_by)
        )  # fmt: skip
    return rows


def _multiplication(kernel: MicroKernel) -> str:
    """The multiplication that bounds a kernel, a name of ``multiply_rates()``; empty for those that have none."""
    if kernel.role.startswith("WINOGRAD_QA8"):
        return "smlal (int16)"
    match = NAME.fullmatch(kernel.name)
    return _MULTIPLIES.get((match["left"], kernel.isa), "") if match else ""

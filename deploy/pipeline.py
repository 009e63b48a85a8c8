"""The whole compiler as one list of phases, from an imported ONNX network to a function that can be printed as C."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax

from sparrow.deploy.codegen_c import tvm_symbol
from sparrow.deploy.frontend_onnx import OnnxNetwork, import_relax
from sparrow.deploy.operators import ConvLayer
from sparrow.deploy.passes.bounded_indices import BOUNDED
from sparrow.deploy.passes.pack_channels import pack_channels
from sparrow.deploy.passes.partition_convolutions import partition_convolutions
from sparrow.deploy.passes.recover_clip import recover_clip
from sparrow.deploy.passes.sink_casts import sink_casts
from sparrow.deploy.passes.sink_dequantize import sink_dequantize
from sparrow.deploy.target import Target
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import make_folder

transform = relax.transform

# Ctrl-C inside of a pass in Python would come out of TVM as an error without a text.
tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)


@dataclass
class CompilerState:
    """What the phases hand on.

    Attributes:
        network: The network that is compiled.
        target: What it is compiled for.
        name: C identifier of the network.
        half: Whether float layers compute in half precision where their weights allow it.
        own_kernels: Whether Sparrow's kernels compute what they can; otherwise TVM generates code for everything.
        module: Its Relax module, replaced by every phase.
        layers: Sparrow layers, once partitioned.
    """

    network: OnnxNetwork
    target: Target
    name: str
    half: bool = False
    own_kernels: bool = True
    module: tvm.IRModule = field(default_factory=tvm.IRModule)
    layers: list[ConvLayer] = field(default_factory=list)


Phase = Callable[[CompilerState], tvm.IRModule]


def _import(state: CompilerState) -> tvm.IRModule:
    return import_relax(state.network)


def _canonicalize(state: CompilerState) -> tvm.IRModule:
    passes = [transform.CanonicalizeBindings(), transform.EliminateCommonSubexpr(), _dead_code()]
    return tvm.transform.Sequential(passes)(state.module)


def _recover_clip(state: CompilerState) -> tvm.IRModule:
    return recover_clip(state.module)


def _sink_dequantize(state: CompilerState) -> tvm.IRModule:
    return sink_dequantize(state.module)


def _partition(state: CompilerState) -> tvm.IRModule:
    if not state.own_kernels:
        return state.module
    partition = partition_convolutions(state.module, layer_names(state.network), half=state.half)
    state.layers = partition.layers
    return partition.module


def _sink_casts(state: CompilerState) -> tvm.IRModule:
    return sink_casts(state.module)


def _pack_channels(state: CompilerState) -> tvm.IRModule:
    return pack_channels(state.module)


def _legalize(state: CompilerState) -> tvm.IRModule:
    """Let TVM lower, fold and fuse everything that is not Sparrow's."""
    passes = [
        transform.CanonicalizeBindings(),
        transform.LegalizeOps(BOUNDED),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        _dead_code(),
    ]
    with tvm.target.Target(llvm_target(state.target)):
        return tvm.transform.Sequential(passes)(state.module)


def _plan_memory(state: CompilerState) -> tvm.IRModule:
    passes = [
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
    ]
    return tvm.transform.Sequential(passes)(state.module)


PHASES: tuple[tuple[str, Phase], ...] = (
    ("import", _import),
    ("recover-clip", _recover_clip),
    ("canonicalize", _canonicalize),
    ("sink-dequantize", _sink_dequantize),
    ("partition", _partition),
    ("sink-casts", _sink_casts),
    ("pack-channels", _pack_channels),
    ("legalize", _legalize),
    ("plan-memory", _plan_memory),
)


def run_pipeline(
    state: CompilerState, *, dump_dir: Path | None = None, on_phase: Callable[[str], None] = lambda name: None
) -> None:
    """Run every phase on ``state``, in place.

    Args:
        state: Network and target; module and layers are filled in.
        dump_dir: Folder that gets the module after each phase, as ``<number>-<phase>.py``.
        on_phase: Called with the name of each phase before it starts.

    Raises:
        SparrowError: A phase failed; its name is in the error.
    """
    for number, (name, phase) in enumerate(PHASES):
        on_phase(name)
        try:
            state.module = phase(state)
        except SparrowError:
            raise
        except Exception as error:  # TVM raises whatever its passes meet
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SparrowError(
                f"the compiler failed in phase {name}: {first_line}",
                expected="a network whose operators TVM can lower with static shapes",
                next_step="run again with -v for the traceback, and --dump-dir to see the network before this phase",
            ) from error
        if dump_dir is not None:
            make_folder(dump_dir)
            (dump_dir / f"{number}-{name}.py").write_text(state.module.script(show_meta=False), encoding="utf-8")


def compile_functions(module: tvm.IRModule, name: str, target: Target, output: Path) -> None:
    """Compile the functions that TVM generated to one aarch64 object file.

    Args:
        module: Module after the last phase.
        name: C identifier of the network; prefixes every symbol.
        target: Core to schedule for.
        output: Object file to write; left out if there are no such functions.
    """
    functions = {
        variable: function.with_attr("global_symbol", tvm_symbol(name, variable.name_hint))
        for variable, function in module.functions.items()
        if not isinstance(function, relax.Function)
    }
    if functions:
        spec = llvm_target(target)
        compiled = tvm.compile(tvm.IRModule(functions), target=tvm.target.Target(spec, host=spec))
        compiled.mod.write_to_file(str(output), "o")


def llvm_target(target: Target) -> dict[str, object]:
    """TVM's description of a target: plain Armv8-A instructions, scheduled for the core."""
    return {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": target.llvm_cpu, "mattr": BASELINE}


# The bundle has to run everywhere, so code that is not picked at load time keeps to Armv8.0.
BASELINE = ["+neon", "-dotprod", "-fullfp16", "-rdm", "-lse", "-crc", "-sve", "-sve2", "-i8mm", "-bf16", "-rcpc"]


def layer_names(network: OnnxNetwork) -> list[str]:
    """Name each convolution and matrix product, in order, after its weight."""
    producers = {output: node for node in network.model.graph.node for output in node.output}
    initializers = {tensor.name for tensor in network.model.graph.initializer}
    names = []
    for node in network.model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight = node.input[1]
            name = weight if weight in initializers or weight in producers else node.name
            names.append(name.removesuffix(".weight") or node.name)
    return names


def _dead_code() -> tvm.transform.Pass:
    return transform.DeadCodeElimination(["main"])

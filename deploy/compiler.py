"""From an ONNX file to a bundle."""

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sparrow.deploy.bundle import MODEL, RUNNER, Bundle, is_bundle, load_bundle, write_manifest
from sparrow.deploy.frontend_onnx import load_onnx
from sparrow.deploy.operators import ConvLayer
from sparrow.deploy.target import Target, find_target
from sparrow.deploy.toolchain import Toolchain, find_toolchain, source_key
from sparrow.kernels.build import INCLUDE_DIR, kernel_sources
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_folder, cache_dir
from sparrow.kernels.formats import WeightFormat
from sparrow.kernels.registry import select_kernel

RUNTIME_DIR = INCLUDE_DIR / "runtime"
RUNTIME_SOURCES = ("runtime.c", "thread_pool.c")
MAX_OPERANDS = 64  # SPARROW_MAX_OPERANDS in kernels/csrc/runtime/program.h
INCLUDE_FLAGS = (f"-I{INCLUDE_DIR}", f"-I{RUNTIME_DIR}", "-mno-outline-atomics")


def compile_model(
    model_path: Path,
    output: Path,
    *,
    target: str,
    name: str | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    toolchain: Toolchain | None = None,
    dump_dir: Path | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Bundle:
    """Compile an ONNX network to a bundle.

    Args:
        model_path: ONNX file.
        output: Bundle folder to write; an earlier bundle there is replaced.
        target: A key of ``deploy.target.TARGETS``.
        name: C identifier of the network, by default made of the file's name.
        input_shapes: Static shapes for dynamic inputs, by input name.
        outputs: Inner tensors to end the network at, by default its own outputs.
        toolchain: Cross compiler, by default the first that is installed.
        dump_dir: Folder that gets the network after each phase of the compiler.
        on_phase: Called with the name of each phase before it starts.

    Returns:
        The bundle.

    Raises:
        SparrowError: The network cannot be compiled, a tool is missing, or the output cannot be written.
    """
    chosen_target = find_target(target)
    name = c_identifier(name or model_path.stem)
    on_phase("read")
    network = load_onnx(model_path, input_shapes, outputs)
    toolchain = toolchain or find_toolchain()
    with atomic_folder(output, may_replace=is_bundle) as folder, tempfile.TemporaryDirectory() as scratch_name:
        # TVM takes seconds to import: what is wrong with the arguments was said above, before that.
        from sparrow.deploy.codegen_c import generate_program
        from sparrow.deploy.pipeline import CompilerState, compile_functions, run_pipeline

        scratch = Path(scratch_name)
        state = CompilerState(network, chosen_target, name)
        run_pipeline(state, dump_dir=dump_dir, on_phase=on_phase)
        refuse_long_calls(state.module)
        program = generate_program(state.module, state.layers, name, network.inputs, network.outputs)
        on_phase("compile")
        compile_functions(state.module, name, chosen_target, scratch / "tvm.o")
        (scratch / "program.c").write_text(program.source, encoding="utf-8")
        (scratch / "weights.bin").write_bytes(program.weights)
        (scratch / "weights.S").write_text(_weights_assembly(name, scratch / "weights.bin"), encoding="utf-8")
        for source in ("program.c", "weights.S"):
            toolchain.compile(scratch / source, (scratch / source).with_suffix(".o"), flags=INCLUDE_FLAGS)
        toolchain.compile(RUNTIME_DIR / "sparrow_run.c", scratch / "sparrow_run.o",
                          flags=(*INCLUDE_FLAGS, f"-DSPARROW_PROGRAM={name}_program"))  # fmt: skip
        on_phase("link")
        own = [file for file in (scratch / "program.o", scratch / "weights.o", scratch / "tvm.o") if file.exists()]
        objects = [*own, *runtime_objects(toolchain)]
        toolchain.archive(objects, folder / f"lib{name}.a")
        toolchain.link_shared(objects, folder / f"lib{name}.so", exports=["sparrow_*", f"{name}_program"])
        toolchain.link_executable([scratch / "sparrow_run.o", *objects], folder / RUNNER)
        (folder / f"{name}.h").write_text(_header(name), encoding="utf-8")
        if network.reference is None:
            shutil.copyfile(model_path, folder / MODEL)
        else:
            (folder / MODEL).write_bytes(network.reference.SerializeToString(deterministic=True))
        write_manifest(
            folder,
            {
                "name": name,
                "target": chosen_target.name,
                "sparrow_version": version("sparrow-mobile"),
                "tvm_version": version("apache-tvm"),
                "c_compiler": toolchain.version,
                "inputs": [asdict(info) for info in network.inputs],
                "outputs": [asdict(info) for info in network.outputs],
                "metadata": network.metadata,
                "weights_bytes": len(program.weights),
                "arena_bytes": program.arena_bytes,
                "layers": [
                    describe_layer(layer, packed, chosen_target)
                    for layer, packed in zip(state.layers, program.layer_bytes, strict=True)
                ],
                "steps": list(program.steps),
            },
        )
    return load_bundle(output)


def refuse_long_calls(module: Any) -> None:
    """Raise SparrowError if a function that TVM generated takes more operands than the runtime passes on.

    Args:
        module: Module after the last phase of the pipeline.
    """
    for variable, function in module.functions.items():
        if variable.name_hint != "main" and len(function.params) > MAX_OPERANDS:
            raise SparrowError(
                f"a fused operator of the network takes {len(function.params)} tensors: {variable.name_hint[:100]}",
                expected=f"at most {MAX_OPERANDS}, what the runtime passes to one call",
                next_step="shorten the sequence of a recurrent layer, or the concatenation of many tensors",
            )


def runtime_objects(toolchain: Toolchain) -> list[Path]:
    """Compile the runtime and all kernels, or take them from the cache.

    Args:
        toolchain: Cross compiler.

    Returns:
        Object files, the same for every network.
    """
    sources = [(RUNTIME_DIR / source, "neon") for source in RUNTIME_SOURCES]
    sources += [(source.path, source.isa) for source in kernel_sources()]
    headers = [path for pattern in ("*.h", "*.inc") for path in INCLUDE_DIR.rglob(pattern)]
    flags = " ".join(INCLUDE_FLAGS[2:])
    folder = cache_dir() / "objects" / source_key([path for path, _ in sources] + headers, toolchain.identity, flags)
    names = [f"{path.stem}.o" for path, _ in sources]
    if not folder.is_dir():
        # Another process may be doing the same: whoever comes second replaces equal files by equal files.
        with atomic_folder(folder, may_replace=lambda path: True) as fresh:
            for (path, isa), name in zip(sources, names, strict=True):
                toolchain.compile(path, fresh / name, isa=isa, flags=INCLUDE_FLAGS)
    return [folder / name for name in names]


def describe_layer(layer: ConvLayer, packed_bytes: int, target: Target) -> dict[str, Any]:
    """One layer's entry of the manifest; its kernel is the one that the target picks at load time."""
    weights, geometry = layer.weights, layer.geometry
    values = weights.values if weights.codebook is None else weights.codebook[weights.values]
    return {
        "name": layer.name,
        "input_shape": list(geometry.input_shape),
        "output_shape": list(geometry.output_shape),
        "window": list(geometry.kernel),
        "stride": list(geometry.stride),
        "groups": geometry.groups,
        "weight_format": WeightFormat(weights.format).value,
        "distinct_values": int(np.unique(values).size),
        "zero_share": float(np.mean(values == 0)),
        "parameters": int(values.size),
        "packed_bytes": packed_bytes,
        "multiply_accumulates": geometry.multiply_accumulates,
        "activations": "int8" if layer.input_grid else "float32",
        "output": "int8" if layer.output_grid else "float32",
        "residual": layer.has_residual,
        "kernel": select_kernel(layer.kernel_role, target.instruction_sets).symbol,
        "reason": layer.reason,
    }


def c_identifier(text: str) -> str:
    """Make a C identifier of a file's name.

    Raises:
        SparrowError: Nothing is left of it.
    """
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower()
    if not name:
        raise SparrowError(f"no C identifier can be made of {text!r}", next_step="give one with --name")
    return f"net_{name}" if name[0].isdigit() else name


def _weights_assembly(name: str, blob: Path) -> str:
    """Assembly that places the blob in read-only memory, on its own cache lines."""
    path = str(blob).replace("\\", "\\\\").replace('"', '\\"')
    return (
        f'.section .rodata.{name}_weights, "a"\n.balign 64\n.globl {name}_weights\n.hidden {name}_weights\n'
        f'{name}_weights:\n.incbin "{path}"\n.byte 0\n.section .note.GNU-stack, "", %progbits\n'
    )


def _header(name: str) -> str:
    api = (RUNTIME_DIR / "sparrow.h").read_text(encoding="utf-8").replace("NAME_program", f"{name}_program")
    guard = f"SPARROW_{name.upper()}_H"
    return (
        f"{api}\n#ifndef {guard}\n#define {guard}\n#ifdef __cplusplus\nextern \"C\" {{\n#endif\n"
        f"extern const sparrow_program {name}_program;\n#ifdef __cplusplus\n}}\n#endif\n#endif\n"
    )

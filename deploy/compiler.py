"""From an ONNX file to a bundle."""

import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sparrow.deploy.android import find_ndk, require_static_programs
from sparrow.deploy.bundle import MODEL, RUNNER, Bundle, is_bundle, load_bundle, write_manifest
from sparrow.deploy.frontend_onnx import OnnxNetwork, load_onnx
from sparrow.deploy.operators import ConvLayer
from sparrow.deploy.target import Target, find_target
from sparrow.deploy.toolchain import HARDENING_FLAGS, Toolchain, find_toolchain, source_key
from sparrow.kernels.build import INCLUDE_DIR, kernel_sources
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import atomic_folder, cache_dir, cached_folder
from sparrow.kernels.formats import WeightFormat
from sparrow.kernels.registry import select_kernel

RUNTIME_DIR = INCLUDE_DIR / "runtime"
RUNTIME_SOURCES = ("runtime.c", "thread_pool.c")
FLOAT_PRECISIONS = ("fp32", "fp16")
INCLUDE_FLAGS = (f"-I{INCLUDE_DIR}", f"-I{RUNTIME_DIR}", "-mno-outline-atomics")
RUNTIME_FLAGS = (*INCLUDE_FLAGS, *HARDENING_FLAGS)

log = logging.getLogger("sparrow")


def compile_model(
    model_path: Path,
    output: Path,
    *,
    target: str,
    name: str | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    float_precision: str = "fp32",
    toolchain: Toolchain | None = None,
    android: bool = False,
    ndk: Path | None = None,
    own_kernels: bool = True,
    dump_dir: Path | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Bundle:
    """Compile an ONNX network to a bundle.

    Args:
        model_path: ONNX file.
        output: Bundle folder to write; an earlier bundle there is replaced, or kept if nothing changed.
        target: A key of ``deploy.target.TARGETS``.
        name: C identifier of the network, by default made of the file's name.
        input_shapes: Static shapes for dynamic inputs, by input name.
        outputs: Inner tensors to end the network at, by default its own outputs.
        float_precision: What float layers compute in, one of ``FLOAT_PRECISIONS``: with ``fp16`` half precision, where
            their weights allow it.
        toolchain: Cross compiler, by default the first that is installed.
        android: Make a bundle for Android in place of Linux. ``sparrow_run`` and the static library serve both; the
            shared library is Android's, and left out without ``ndk``.
        ndk: Folder of Android's NDK, which links that library.
        own_kernels: Compute with Sparrow's kernels; otherwise by what TVM generates untuned, to compare with.
        dump_dir: Folder that gets the network after each phase of the compiler.
        on_phase: Called with the name of each phase before it starts.

    Returns:
        The bundle.

    Raises:
        SparrowError: The network cannot be compiled, a tool is missing, or the output cannot be written.
    """
    chosen_target = find_target(target)
    if float_precision not in FLOAT_PRECISIONS:
        raise SparrowError(
            f"float precision {float_precision!r}", expected=near_names(float_precision, FLOAT_PRECISIONS)
        )
    if float_precision == "fp16" and "neon_fp16" not in chosen_target.instruction_sets:
        log.warning("%s does not promise fp16: a core without it computes halves in float, no faster than fp32", target)
    name = c_identifier(name or model_path.stem)
    on_phase("read")
    network = load_onnx(model_path, input_shapes, outputs)
    toolchain = toolchain or find_toolchain()
    if android:
        require_static_programs(toolchain)
    shared_linker = find_ndk(ndk) if android and ndk else None if android else toolchain
    linkers = toolchain.identity, repr(shared_linker) if android else ""
    made_from = fingerprint(network, target, name, float_precision, str(android), str(own_kernels), *linkers)
    if dump_dir is None and (kept := _made_before(output, made_from)) is not None:
        on_phase("nothing changed: the bundle is kept")
        return kept
    with atomic_folder(output, may_replace=is_bundle) as folder, tempfile.TemporaryDirectory() as scratch_name:
        # TVM takes seconds to import: what is wrong with the arguments was said above, before that.
        from sparrow.deploy.codegen_c import generate_program
        from sparrow.deploy.pipeline import CompilerState, compile_functions, run_pipeline

        scratch = Path(scratch_name)
        state = CompilerState(network, chosen_target, name, half=float_precision == "fp16", own_kernels=own_kernels)
        run_pipeline(state, dump_dir=dump_dir, on_phase=on_phase)
        program = generate_program(state.module, state.layers, name, network.inputs, network.outputs)
        on_phase("compile")
        compile_functions(state.module, name, chosen_target, scratch / "tvm.o")
        (scratch / "program.c").write_text(program.source, encoding="utf-8")
        (scratch / "weights.bin").write_bytes(program.weights)
        (scratch / "weights.S").write_text(_weights_assembly(name, scratch / "weights.bin"), encoding="utf-8")
        for source, flags in (("program.c", RUNTIME_FLAGS), ("weights.S", INCLUDE_FLAGS)):
            toolchain.compile(scratch / source, (scratch / source).with_suffix(".o"), flags=flags)
        toolchain.compile(RUNTIME_DIR / "sparrow_run.c", scratch / "sparrow_run.o",
                          flags=(*RUNTIME_FLAGS, f"-DSPARROW_PROGRAM={name}_program"))  # fmt: skip
        on_phase("link")
        own = [file for file in (scratch / "program.o", scratch / "weights.o", scratch / "tvm.o") if file.exists()]
        objects = [*own, *runtime_objects(toolchain)]
        toolchain.archive(objects, folder / f"lib{name}.a")
        if shared_linker is not None:
            shared_linker.link_shared(objects, folder / f"lib{name}.so", exports=["sparrow_*", f"{name}_program"])
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
                "float_precision": float_precision,
                "system": "android" if android else "linux",
                "made_from": made_from,
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


def fingerprint(network: OnnxNetwork, *options: str) -> str:
    """Hash everything that a bundle depends on: the network, the options, and the compiler itself.

    Args:
        network: Network in normal form.
        options: What it is compiled for and with.

    Returns:
        16 hexadecimal digits, equal for equal bundles.
    """
    models = [model.SerializeToString(deterministic=True) for model in (network.model, network.reference) if model]
    hashes = [hashlib.sha256(content).hexdigest() for content in models]
    versions = version("sparrow-mobile"), version("apache-tvm")
    folders = Path(__file__).parent, INCLUDE_DIR.parent
    own = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".c", ".h", ".inc")]
    return source_key(own, *hashes, *versions, *options)


def _made_before(output: Path, made_from: str) -> Bundle | None:
    """The bundle in a folder, if it is whole and was made from the same."""
    if not is_bundle(output):
        return None
    try:
        bundle = load_bundle(output)
    except SparrowError:  # damaged, or of another version: it is made again
        return None
    return bundle if bundle.manifest.get("made_from") == made_from else None


def runtime_objects(toolchain: Toolchain) -> list[Path]:
    """Compile the runtime and all kernels, or take them from the cache.

    Args:
        toolchain: Cross compiler.

    Returns:
        Object files, the same for every network.
    """
    sources: list[tuple[Path, str, tuple[str, ...]]]
    sources = [(RUNTIME_DIR / source, "neon", RUNTIME_FLAGS) for source in RUNTIME_SOURCES]
    sources += [(source.path, source.isa, INCLUDE_FLAGS) for source in kernel_sources()]
    headers = [path for pattern in ("*.h", "*.inc") for path in INCLUDE_DIR.rglob(pattern)]
    flags = " ".join((*INCLUDE_FLAGS[2:], *HARDENING_FLAGS))
    folder = cache_dir() / "objects" / source_key([path for path, *_ in sources] + headers, toolchain.identity, flags)
    names = [f"{path.stem}.o" for path, *_ in sources]
    if not folder.is_dir():
        with cached_folder(folder) as fresh:
            for (path, isa, own_flags), name in zip(sources, names, strict=True):
                toolchain.compile(path, fresh / name, isa=isa, flags=own_flags)
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
        "activations": "int8" if layer.input_grid else weights.format.dtype.name,
        "output": "int8" if layer.output_grid else weights.format.dtype.name if weights.format.is_float else "float32",
        "residual": layer.has_residual,
        "kernel": select_kernel(layer.kernel_role(target.instruction_sets), target.instruction_sets).symbol,
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
    path = str(blob).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
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

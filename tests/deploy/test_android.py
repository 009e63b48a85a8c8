"""Bundles for Android: they load where a page has 16 KB, call what every Android has, and need an NDK for a library."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from sparrow.deploy.android import find_ndk, require_static_programs
from sparrow.deploy.bundle import load_bundle
from sparrow.deploy.compiler import compile_model
from sparrow.deploy.toolchain import Toolchain
from sparrow.kernels.errors import SparrowError

from .elf import LOAD, THREAD_LOCAL, Elf, members
from .networks import residual_network

PAGE = 16384

# What the libraries of a bundle may call: functions that bionic has had since Android 5.0 (API level 21).
BIONIC_21 = {
    "__errno", "__stack_chk_fail", "__stack_chk_guard",
    "abort", "calloc", "fclose", "fgets", "fopen", "free", "getauxval", "malloc", "memcmp", "memcpy", "memmove",
    "memset", "posix_memalign", "realloc", "snprintf", "strcmp", "strlen", "strtoul", "vsnprintf",
    "pthread_cond_broadcast", "pthread_cond_destroy", "pthread_cond_init", "pthread_cond_signal", "pthread_cond_wait",
    "pthread_create", "pthread_getspecific", "pthread_join", "pthread_key_create", "pthread_mutex_destroy",
    "pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_once", "pthread_setspecific",
    "acosf", "asinf", "atan2f", "atanf", "ceilf", "cosf", "coshf", "erff", "exp2f", "expf", "floorf", "fmaf", "fmodf",
    "log10f", "log2f", "logf", "nearbyintf", "powf", "rintf", "roundf", "sinf", "sinhf", "sqrtf", "tanf", "tanhf",
    "truncf",
}  # fmt: skip

# An NDK's clang as far as a bundle needs one: it writes down what it was asked for and links by zig, for glibc.
CLANG = """#!{python}
import json, os, sys
with open({log!r}, "w") as file:
    json.dump(sys.argv[1:], file)
kept = [part for part in sys.argv[1:] if not part.startswith("--target=")]
os.execv({python!r}, [{python!r}, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.17", *kept])
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like an NDK."""
    folder = tmp_path_factory.mktemp("sdk") / "ndk" / "27.2.12479018"
    programs = folder / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin"
    programs.mkdir(parents=True)
    (folder / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 27.2.12479018\n")
    (programs / "clang").write_text(CLANG.format(python=sys.executable, log=str(folder / "asked.json")))
    (programs / "clang").chmod(0o755)
    return folder


def test_an_ndk_is_known_by_what_is_in_it(kit):
    found = find_ndk(kit)
    assert (found.revision, found.clang.name) == ("27.2.12479018", "clang")


def test_folders_that_are_no_ndk(kit, tmp_path):
    with pytest.raises(SparrowError, match="there is no such folder") as error:
        find_ndk(tmp_path / "nothing")
    assert "sdkmanager" in error.value.next_step
    with pytest.raises(SparrowError, match="is no Android NDK") as error:
        find_ndk(kit.parent.parent)  # the SDK around it
    assert error.value.next_step == f"--ndk '{kit}'"
    (tmp_path / "source.properties").write_text("Pkg.Desc = Android SDK Platform\nPkg.Revision = 34\n")
    with pytest.raises(SparrowError, match="is no Android NDK"):
        find_ndk(tmp_path)
    (tmp_path / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 16.1.4479499\n")
    with pytest.raises(SparrowError, match=r"release 16\.1\.4479499 of the NDK\n  expected: release 19"):
        find_ndk(tmp_path)
    (tmp_path / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 25.0.1\n")
    with pytest.raises(SparrowError, match="has no toolchains/llvm/prebuilt"):
        find_ndk(tmp_path)


def test_a_compiler_that_brings_glibc_is_refused():
    require_static_programs(Toolchain("zig", (), (), "zig"))
    with pytest.raises(SparrowError, match="gcc 12 links glibc into static programs"):
        require_static_programs(Toolchain("gcc", (), (), "gcc 12"))


@pytest.mark.tvm
def test_a_bundle_for_an_app(kit, tmp_path):
    onnx.save(residual_network(), tmp_path / "network.onnx")
    bundle = compile_model(tmp_path / "network.onnx", tmp_path / "bundle", target="armv8-a", android=True, ndk=kit)
    assert bundle.manifest["system"] == "android"
    for name in ("sparrow_run", "libnetwork.so"):
        segments = Elf((bundle.path / name).read_bytes()).segments(LOAD)
        assert segments and all(alignment % PAGE == 0 for _, alignment in segments), name
    asked = json.loads((kit / "asked.json").read_text())
    # The loader of Android before 10 refuses a library with storage of threads' own.
    assert Elf((bundle.path / "libnetwork.so").read_bytes()).segments(THREAD_LOCAL) == []
    assert asked[0] == "--target=aarch64-linux-android21"
    assert {"-shared", "-Wl,-z,max-page-size=16384", "-Wl,-soname,libnetwork.so", "-Wl,-z,defs"} <= set(asked)
    assert "-lpthread" not in asked


@pytest.mark.tvm
def test_without_an_ndk_under_names_that_a_shell_would_take_apart(tmp_path, monkeypatch):
    folder = tmp_path / "my \"net\"'s\n$x, ü"
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    model = folder / "it's a \"net\" $HOME `id`\n猫.onnx"
    onnx.save(residual_network(), model)
    bundle = compile_model(model, folder / "out, \n$y", target="armv8-a", android=True)
    assert bundle.manifest["name"] == "it_s_a_net_home_id"
    assert sorted(bundle.manifest["files"]) == ["it_s_a_net_home_id.h", "libit_s_a_net_home_id.a", "model.onnx",
                                                "sparrow_run"]  # fmt: skip
    assert load_bundle(bundle.path).manifest == bundle.manifest
    assert list(scratch.iterdir()) == [] and len(list(folder.iterdir())) == 3


@pytest.mark.tvm
def test_a_library_calls_only_what_every_android_has(residual_bundle):
    files = members((residual_bundle / "libnetwork.a").read_bytes())
    needed = set().union(*(file.undefined() for file in files)) - set().union(*(file.defined() for file in files))
    assert needed and needed <= BIONIC_21, needed - BIONIC_21


@pytest.mark.tvm
def test_a_bundle_for_linux_has_the_same_alignment(residual_bundle):
    for name in ("sparrow_run", "libnetwork.so"):
        segments = Elf((residual_bundle / name).read_bytes()).segments(LOAD)
        assert segments and all(alignment % PAGE == 0 for _, alignment in segments), name


def test_an_ndk_that_fails_is_quoted(kit, tmp_path):
    broken = tmp_path / "clang"
    broken.write_text("#!/bin/sh\necho 'ld.lld: error: cannot find -lm' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SparrowError, match="cannot find -lm"):
        replace(find_ndk(kit), clang=broken).link_shared([], tmp_path / "lib.so", exports=["*"])

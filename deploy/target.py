"""What a bundle is compiled for."""

from dataclasses import dataclass

from sparrow.kernels.errors import SparrowError, near_names


@dataclass(frozen=True)
class Target:
    """A core or an architecture level.

    A bundle runs on every 64-bit ARM core: its kernels are picked at load time from what the core has. The target
    tunes what is not picked: the code that TVM generates, and which kernels the reports assume.

    Attributes:
        name: Name on the command line.
        llvm_cpu: LLVM's name of the core whose pipeline TVM's code is scheduled for.
        instruction_sets: Kernel families that this core picks at load time, best first.
    """

    name: str
    llvm_cpu: str
    instruction_sets: tuple[str, ...]


_PLAIN = ("neon",)
_DOTPROD = ("neon_dotprod", "neon")
_I8MM = ("neon_i8mm", "neon_dotprod", "neon")
_HALF = ("neon_fp16",)  # every core with dotprod has it, but the architecture levels do not ask for it

TARGETS = {
    target.name: target
    for target in (
        Target("cortex-a53", "cortex-a53", _PLAIN),
        Target("cortex-a55", "cortex-a55", _HALF + _DOTPROD),
        Target("cortex-a72", "cortex-a72", _PLAIN),
        Target("cortex-a76", "cortex-a76", _HALF + _DOTPROD),
        Target("cortex-a510", "cortex-a510", _HALF + _I8MM),
        Target("armv8-a", "generic", _PLAIN),
        Target("armv8.2-a+dotprod", "generic", _DOTPROD),
        Target("armv8.6-a+i8mm", "generic", _I8MM),
    )
}


def find_target(name: str) -> Target:
    """Look up a target.

    Args:
        name: A key of ``TARGETS``.

    Raises:
        SparrowError: There is no such target; the nearest names are listed.
    """
    if name not in TARGETS:
        raise SparrowError(f"unknown target {name!r}", expected=near_names(name, TARGETS))
    return TARGETS[name]

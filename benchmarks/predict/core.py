"""Cores: what data sheets say of each, one file in ``cores``, together with the figures that were fitted for it."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cattrs

from sparrow.benchmarks.predict.calibration import Calibration, Figures, KnownError, load_calibration
from sparrow.benchmarks.runners.qemu import Cache
from sparrow.kernels.errors import SparrowError, near_names

CORES = Path(__file__).with_name("cores")


@dataclass(frozen=True)
class StandIn:
    """The core whose fitted figures are taken where a core has none of its own.

    Attributes:
        core: Name of the other core, which was calibrated.
        pipeline_scale: What the other's pipeline factor is multiplied by, where the two pipeline models are not of the
            same kind.
    """

    core: str
    pipeline_scale: float


@dataclass(frozen=True)
class CoreFacts:
    """Contents of a core's data file.

    Attributes:
        name: Its name, a key of ``runners.qemu.CPU_MODELS`` as well.
        pipeline_model: LLVM's name of the pipeline that stands for it.
        l1: First level of data cache.
        l2: Second level as chips commonly have it; a SoC's own is in its file.
        stand_in: Whose fitted figures it takes while it has none; ``None`` for a core that is always calibrated.
        source: Where the data come from, and why this pipeline.
    """

    name: str
    pipeline_model: str
    l1: Cache
    l2: Cache
    stand_in: StandIn | None
    source: str


@dataclass(frozen=True)
class Core:
    """A core that predictions can be made for.

    Attributes:
        name: Its name.
        pipeline_model: LLVM's name of the pipeline that stands for it.
        l1: First level of data cache.
        l2: Second level.
        figures: What was fitted for it, or for the core that stands in.
        errors: Errors on boards left out of the fit, by number of threads; empty where they are not known.
        source: Where the data of the core come from.
        figures_source: Where the figures come from.
    """

    name: str
    pipeline_model: str
    l1: Cache
    l2: Cache
    figures: Figures
    errors: tuple[KnownError, ...]
    source: str
    figures_source: str

    def error_text(self, threads: int = 1) -> str:
        """The known error of predictions for a number of threads, in words."""
        known = [error for error in self.errors if (error.threads > 1) == (threads > 1)]
        return min(known, key=lambda error: abs(error.threads - threads)).text() if known else "error unknown"


def core_names() -> list[str]:
    """Names of the cores that predictions can be made for."""
    return sorted(path.stem for path in CORES.glob("*.json"))


def load_core(name: str, calibration: Calibration | None = None) -> Core:
    """Read a core's data file and its figures.

    Args:
        name: Name of the core.
        calibration: Fitted figures; those that come with Sparrow unless given.

    Raises:
        SparrowError: There is no such core; the nearest names are listed. Or there are no figures for it.
    """
    facts = core_facts(name)
    calibration = calibration or load_calibration()
    if (fitted := calibration.cores.get(name)) is not None:
        figures, errors, figures_source = fitted.figures, fitted.errors, fitted.source
    elif (other := facts.stand_in) is not None and other.core in calibration.cores:
        fitted = calibration.cores[other.core]
        factor = fitted.figures.pipeline_factor * other.pipeline_scale
        figures, errors = replace(fitted.figures, pipeline_factor=factor), ()
        figures_source = f"those of the {other.core}, for want of measurements: {fitted.source}"
    else:
        raise SparrowError(f"no figures were fitted for the core {name!r}",
                           expected=near_names(name, calibration.cores), next_step="sparrow calibrate")  # fmt: skip
    return Core(name, facts.pipeline_model, facts.l1, facts.l2, figures, errors, facts.source, figures_source)


@cache
def core_facts(name: str) -> CoreFacts:
    """Read a core's data file.

    Raises:
        SparrowError: There is no such core; the nearest names are listed.
    """
    if name not in core_names():
        raise SparrowError(f"no data for the core {name!r}", expected=near_names(name, core_names()))
    return cattrs.structure(json.loads((CORES / f"{name}.json").read_text(encoding="utf-8")), CoreFacts)

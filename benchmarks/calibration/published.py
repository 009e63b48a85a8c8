"""Measurements of real boards that ncnn's users sent to its project."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparrow.benchmarks.predict.soc import load_soc
from sparrow.kernels.errors import SparrowError

# Text in a published device's name -> SoC. Cores whose clock or kind the data files do not know are no boards to fit.
BOARDS = {
    "Snapdragon 410": "snapdragon-410",
    "Snapdragon 835": "snapdragon-835",
    "Snapdragon 855+": "snapdragon-855-plus",
    "Kirin 970": "kirin-970",
    "RK3399": "rk3399",
    "Raspberry Pi 3": "raspberry-pi-3",
    "Raspberry Pi 4": "raspberry-pi-4",
    "Raspberry Pi 5": "raspberry-pi-5",
    "Radxa Zero 3W": "rk3566",
}
# ncnn's setting of "powersave" -> cores that the threads are bound to.
_AFFINITIES = {0: "all", 1: "little", 2: "big"}


@dataclass(frozen=True)
class Measurement:
    """What one network took on one board.

    Attributes:
        soc: Name of the board's SoC, of a data file of ``predict/socs``.
        affinity: Cores that the threads were bound to, as ``Soc.place`` takes it.
        threads: Number of threads.
        network: Name of the network.
        milliseconds: Mean time of one inference.
        fastest_milliseconds: Time of the fastest of some repetitions.
    """

    soc: str
    affinity: str
    threads: int
    network: str
    milliseconds: float
    fastest_milliseconds: float

    @property
    def core(self) -> str:
        """Kind of core that the main thread ran on."""
        return load_soc(self.soc).place(self.affinity, self.threads)[0].core


@dataclass(frozen=True)
class Published:
    """The measurements of a file.

    Attributes:
        source: Where the file says that they come from.
        measurements: Those of known boards.
        unknown_devices: Devices whose SoC has no data file.
    """

    source: str
    measurements: tuple[Measurement, ...]
    unknown_devices: tuple[str, ...]


def read_published(path: Path) -> Published:
    """Read published measurements.

    Args:
        path: JSON file: ``source``, and ``devices``, by name a list of settings (``num_threads``, ``powersave``) with
            ``ms``, by network the ``min``, ``max`` and ``avg`` milliseconds.

    Raises:
        SparrowError: The file cannot be read, is of another form, or holds no board that is known.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        socs = {device: _soc_of(device) for device in document["devices"]}
        measurements = [
            Measurement(soc, _AFFINITIES[setting["powersave"]], int(setting["num_threads"]), network,
                        float(times["avg"]), float(times["min"]))
            for device, settings in document["devices"].items() if (soc := socs[device]) is not None
            for setting in settings
            for network, times in setting["ms"].items()
        ]  # fmt: skip
        source = str(document["source"])
    except OSError as error:
        raise SparrowError(f"cannot read {path}: {error.strerror}", expected="published measurements of ncnn, as JSON",
                           next_step="name the file with --published") from error  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SparrowError(f"{path} holds no published measurements: {error!r}", next_step="sparrow calibrate --help",
                           expected='{"source": .., "devices": {NAME: [{"num_threads": .., "powersave": .., '
                                    '"ms": {NETWORK: {"min": .., "avg": ..}}}]}}') from error  # fmt: skip
    wrong = [entry for entry in measurements if not 0 < entry.fastest_milliseconds <= entry.milliseconds]
    if wrong:
        raise SparrowError(f"{path}: {wrong[0].network} on {wrong[0].soc} took {wrong[0].fastest_milliseconds:g} ms at "
                           f"least and {wrong[0].milliseconds:g} ms on average", expected="times above 0")  # fmt: skip
    unknown = tuple(device for device, soc in socs.items() if soc is None)
    if not measurements:
        raise SparrowError(f"{path} has no board that is known, only: {', '.join(unknown) or 'none'}",
                           expected=f"a name that contains one of: {', '.join(BOARDS)}")  # fmt: skip
    return Published(source, tuple(measurements), unknown)


def _soc_of(device: str) -> str | None:
    return next((soc for text, soc in BOARDS.items() if text in device), None)

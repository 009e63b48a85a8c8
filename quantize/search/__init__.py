"""Mixed precision and density: which bits and which share of zero blocks each layer gets.

* :mod:`~sparrow.quantize.search.settings`: what a layer may get, and the configuration that all layers' choices make.
* :mod:`~sparrow.quantize.search.sensitivity`: what each setting of each layer does to the network's outputs.
* :mod:`~sparrow.quantize.search.allocation`: the choices that a budget buys, from sensitivities and costs.

What a setting costs is a table that the caller brings: this package knows neither compiler nor predictor.
"""

from sparrow.quantize.search.allocation import Allocation, cheapest_within, frontier
from sparrow.quantize.search.sensitivity import measure_sensitivity
from sparrow.quantize.search.settings import Setting, choice_config, searchable_layers, uniform_choice

__all__ = [
    "Allocation",
    "Setting",
    "cheapest_within",
    "choice_config",
    "frontier",
    "measure_sensitivity",
    "searchable_layers",
    "uniform_choice",
]

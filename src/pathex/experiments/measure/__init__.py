"""What a network costs on this machine: size, multiply-adds, milliseconds in every engine that is installed."""

from pathex.experiments.measure.engines import DENSE, ENGINES, Unavailable
from pathex.experiments.measure.latency import fastest_dense, latency, quartiles
from pathex.experiments.measure.network import facts, layers
from pathex.experiments.measure.picture import draw

__all__ = ["DENSE", "ENGINES", "Unavailable", "draw", "facts", "fastest_dense", "latency", "layers", "quartiles"]

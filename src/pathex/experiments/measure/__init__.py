"""What a network costs on this machine: size, multiply-adds, milliseconds in every engine that is installed."""

from pathex.experiments.measure.engines import ENGINES, Unavailable
from pathex.experiments.measure.latency import latency
from pathex.experiments.measure.network import facts, layers
from pathex.experiments.measure.picture import draw

__all__ = ["ENGINES", "Unavailable", "draw", "facts", "latency", "layers"]

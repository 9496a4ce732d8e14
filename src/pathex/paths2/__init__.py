"""A network seen as paths."""

from pathex.paths2 import rules
from pathex.paths2.linear import replay, replay_open
from pathex.paths2.record import calibrate, record
from pathex.paths2.weights import Weights

__all__ = ["Weights", "calibrate", "record", "replay", "replay_open", "rules"]

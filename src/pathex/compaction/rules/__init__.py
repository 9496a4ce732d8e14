"""What operators do to channels; importing them registers them."""

from pathex.compaction.rules import elementwise, layers, moves, pools

__all__ = ["elementwise", "layers", "moves", "pools"]

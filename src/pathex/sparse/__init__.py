"""Sparse execution: networks that compute only kept weights, for inference and for training."""

from typing import TYPE_CHECKING, Any

from pathex.sparse.compiler import compile
from pathex.sparse.conversion import Kept, convert, dense_state, kept_layers, kept_state, move, plan, restore
from pathex.sparse.semi_structured import semi_structured

if TYPE_CHECKING:
    from pathex.sparse.choice import Choice
    from pathex.sparse.convolution import KeptConvolution
    from pathex.sparse.network import CompiledNetwork
    from pathex.sparse.pending import Pending
    from pathex.sparse.team import Team

__all__ = [
    "Choice",
    "CompiledNetwork",
    "Kept",
    "KeptConvolution",
    "Pending",
    "Team",
    "compile",
    "convert",
    "dense_state",
    "kept_layers",
    "kept_state",
    "move",
    "plan",
    "restore",
    "semi_structured",
]

_HOME = {"Choice": "choice", "CompiledNetwork": "network", "KeptConvolution": "convolution", "Pending": "pending"}
_HOME |= {"Team": "team"}


def __getattr__(name: str) -> Any:
    """What needs numba, on first use."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"pathex.sparse.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

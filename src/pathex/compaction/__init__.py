"""Networks that come out smaller, and files of them for other programs."""

from pathex.compaction.export import export

__all__ = ["export"]

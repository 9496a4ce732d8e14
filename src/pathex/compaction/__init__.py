"""Networks that come out smaller, their outputs equal, and files of them for other programs."""

from pathex.compaction import rules
from pathex.compaction.export import export
from pathex.compaction.files import load, save
from pathex.compaction.groups import ChannelGroups, channel_groups
from pathex.compaction.plan import Compaction, compact, plan, read_channels
from pathex.compaction.trial import difference

__all__ = [
    "ChannelGroups",
    "Compaction",
    "channel_groups",
    "compact",
    "difference",
    "export",
    "load",
    "plan",
    "read_channels",
    "rules",
    "save",
]

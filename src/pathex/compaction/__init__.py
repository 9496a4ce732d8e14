"""Networks that come out smaller: what a mask leaves without use is taken out, and the outputs stay equal."""

from pathex.compaction import rules
from pathex.compaction.files import load, save
from pathex.compaction.plan import Compaction, compact, plan

__all__ = ["Compaction", "compact", "load", "plan", "rules", "save"]

"""One run: prune, train, evaluate, in a folder that can be resumed."""

from pathex.runs.config import RunConfig
from pathex.runs.naming import run_name
from pathex.runs.running import RunResult, run
from pathex.runs.validation import check_config

__all__ = ["RunConfig", "RunResult", "check_config", "run", "run_name"]

"""``python -m pathex`` is the command ``pathex``."""

import sys

from pathex.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

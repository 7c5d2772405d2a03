"""``python -m specdecodes`` is the command ``specdecodes``."""

import sys

from specdecodes.cli import main

if __name__ == "__main__":
    sys.exit(main())
